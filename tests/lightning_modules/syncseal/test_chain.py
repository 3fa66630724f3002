"""A toy watermark behind synchronised pictures: unreadable when moved, readable when straightened."""

import csv
import math

import numpy as np
import pytest
import torch
from scipy import stats

from datamodules.images.procedural import draw_scene
from datamodules.images.randomness import sample_rng
from lightning_modules.functional.geometry import frame_corners_px, warp
from lightning_modules.syncseal.chain import (
    CHAIN_HEADER,
    ScriptedWatermark,
    evaluate_watermark,
    log_pvalue,
    rectify,
    write_chain,
)
from lightning_modules.syncseal.evaluation import LADDERS
from lightning_modules.syncseal.refinement import Detection

BITS = 16


class ToyPayload(torch.nn.Module):
    """A bit is the sign of a pattern of noise, added at a place that the decoder knows."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        noise = torch.randn(16, 1, size // 4, size // 4, generator=torch.Generator().manual_seed(0))
        self.register_buffer("patterns", torch.nn.functional.interpolate(noise, (size, size), mode="bilinear"))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images

    @torch.jit.export
    def embed(self, images: torch.Tensor, messages: torch.Tensor) -> torch.Tensor:
        signs = (messages * 2.0 - 1.0)[:, :, None, None, None]
        return (images + 0.03 * (signs * self.patterns).sum(1)).clamp(0.0, 1.0)

    @torch.jit.export
    def detect(self, images: torch.Tensor) -> torch.Tensor:
        grey = images.mean(1, keepdim=True)
        flat = grey - torch.nn.functional.avg_pool2d(grey, 9, 1, 4)
        scores = (flat[:, None] * self.patterns).mean(dim=[2, 3, 4])
        return torch.cat([torch.zeros(len(images), 1), scores], dim=1)


class Oracle:
    """Knows how pictures were moved: it is told by the quads of the last attack."""

    def __init__(self, monkeypatch):
        from lightning_modules.syncseal import chain

        moved_by = chain.moved_by

        def noted(*arguments):
            moved, self.quads = moved_by(*arguments)
            return moved, self.quads

        monkeypatch.setattr(chain, "moved_by", noted)

    def embed(self, images):
        return images

    def find(self, attacked, originals):
        return self.quads


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.pt"
    torch.jit.script(ToyPayload()).save(path)
    return ScriptedWatermark(path, BITS)


@pytest.fixture
def ladder(monkeypatch):
    chosen = (
        ("identity_0", ("Identity_0", "Brightness_0.5")),
        ("rotate_20", ("Identity_0",)),
        ("hflip_0", ("Identity_0",)),
    )
    monkeypatch.setitem(LADDERS, "published", chosen)


def scenes():
    drawn = [torch.from_numpy(draw_scene(sample_rng(9, 0, number), (64, 64))) for number in range(4)]
    return torch.stack(drawn).permute(0, 3, 1, 2).float() / 255


def table(rows):
    return list(csv.DictReader([CHAIN_HEADER, *rows]))


def accuracy(rows, move):
    return np.mean([float(row["bit_accuracy"]) for row in rows if row["geom_aug"] == move])


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_synchronisation_makes_moved_pictures_readable(toy, ladder, monkeypatch):
    images = scenes()
    control = table(evaluate_watermark(toy, images, range(4)))
    chained = table(evaluate_watermark(toy, images, range(4), Oracle(monkeypatch)))
    assert len(control) == len(chained) == 4 * 4
    assert accuracy(control, "identity_0") > 0.95
    assert accuracy(control, "rotate_20") < 0.75
    assert accuracy(chained, "rotate_20") > 0.9
    assert accuracy(chained, "hflip_0") > 0.9
    assert control[0]["corner_error"] == "nan"
    assert float(chained[-1]["corner_error"]) == 0
    assert [row["index"] for row in chained[:5]] == ["0", "1", "2", "3", "0"]


def test_rows_do_not_depend_on_the_batch(toy, ladder):
    images = scenes()
    together = table(evaluate_watermark(toy, images, range(4)))
    alone = table(evaluate_watermark(toy, images[2:3], [2]))
    assert [row["bit_accuracy"] for row in together if row["index"] == "2"] == [row["bit_accuracy"] for row in alone]


def test_p_values_are_those_of_a_fair_coin():
    assert log_pvalue(12, 16) == pytest.approx(math.log10(sum(math.comb(16, k) for k in range(12, 17)) / 2**16))
    assert log_pvalue(0, 16) == pytest.approx(0)
    assert log_pvalue(16, 16) == pytest.approx(16 * math.log10(0.5))
    assert stats.binom.sf(11, 16, 0.5) == pytest.approx(10 ** log_pvalue(12, 16))


def test_the_table_is_written_whole(toy, ladder, tmp_path):
    write_chain(tmp_path / "out" / "watermark_sync_metrics.csv", evaluate_watermark(toy, scenes()[:1], [5]))
    lines = (tmp_path / "out" / "watermark_sync_metrics.csv").read_text().splitlines()
    assert lines[0] == CHAIN_HEADER
    assert lines[1].startswith("5,identity_0,0.0,Identity_0,0,1.0000,")
    assert len(lines) == 1 + 4


def test_any_decoder_gets_straight_pictures(toy):
    class Known:
        def detect(self, images):
            return Detection(quad.expand(len(images), 4, 2).float(), torch.zeros(len(images)), torch.zeros(len(images)))

    message = torch.randint(0, 2, (4, BITS), generator=torch.Generator().manual_seed(1)).float()
    marked = toy.embed(scenes(), message)
    centre, turn = 31.5, math.radians(15)
    matrix = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    quad = (frame_corners_px(64, 64) - centre) @ matrix.T + centre
    attacked = warp(marked, quad.expand(4, 4, 2))
    straight = rectify(attacked, Known())
    assert straight.ok.all()
    right = ((toy.decode(straight.images) > 0) == (message > 0.5)).float().mean()
    assert right > 0.9
    assert ((toy.decode(attacked) > 0) == (message > 0.5)).float().mean() < right - 0.15
    assert rectify(attacked, Known(), (80, 96)).images.shape == (4, 3, 80, 96)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_watermarks_of_one_size_change_pictures_of_any(tmp_path):
    path = tmp_path / "toy.pt"
    torch.jit.script(ToyPayload()).save(path)
    toy = ScriptedWatermark(path, BITS, size=64)
    message = torch.ones(1, BITS)
    image = torch.full((1, 3, 100, 150), 0.5)
    assert (toy.decode(toy.embed(image, message)) > 0).float().mean() > 0.9
    assert (toy.decode(toy.embed(image, 1 - message)) < 0).float().mean() > 0.9
    with pytest.raises(ValueError, match="set bits"):
        ScriptedWatermark(path, 8, size=64).decode(image)
    with pytest.raises(FileNotFoundError, match="no such watermark"):
        ScriptedWatermark(tmp_path / "absent.pt", 8)
