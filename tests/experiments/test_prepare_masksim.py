"""Test sets are the published crops, agree from run to run, go on after a stop, and list what is broken."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.compressed_spectra import CompressedSpectraDataModule
from datamodules.images.file_facts import read_facts
from datamodules.images.procedural import draw_scene
from experiments.prepare_masksim import masksim

WINDOW = 64


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    real, fake = tmp_path / "RAISE", tmp_path / "synthbuster"
    for folder, seed in ((real, 0), (fake / "firefly", 1), (fake / "dalle2", 2)):
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = draw_scene(np.random.default_rng(10 * seed + number), (80, 91))
            Image.fromarray(pixels).save(folder / f"p{number}.png")
    return real, fake


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_crops_are_central_and_qualities_drawn_by_name(sources: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        masksim(tmp_path / name, *sources, window=WINDOW, workers=1)
    made = contents(tmp_path / "one")
    assert len(made) == 12
    assert made == contents(tmp_path / "two")
    folder = tmp_path / "one" / "processed_data" / "JPEG_Qrandom"
    qualities = {read_facts(path).jpeg_quality for path in folder.rglob("*.jpg")}
    assert len(qualities) > 3
    assert min(qualities) >= 65
    path = folder / "raise" / "p2.jpg"
    whole = np.asarray(Image.open(sources[0] / "p2.png"))
    error = np.abs(np.asarray(Image.open(path)).astype(int) - whole[8:72, 13:77])
    assert error.mean() < np.abs(np.asarray(Image.open(path)).astype(int) - whole[8:72, 14:78]).mean()
    data = CompressedSpectraDataModule(root=str(tmp_path / "one"), window=WINDOW)
    assert [part.generator for part in data.picture_sets("test")] == ["real", "dalle2", "firefly"]


def test_a_second_start_makes_only_what_is_missing(sources: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    masksim(output, *sources, window=WINDOW, workers=1)
    before = contents(output)
    folder = output / "processed_data" / "JPEG_Qrandom" / "raise"
    (folder / "p1.jpg").unlink()
    (folder / ".p1.jpg.partial").write_bytes(b"cut")
    (folder / "p0.jpg").write_bytes(b"kept as it is")
    masksim(output, *sources, window=WINDOW, workers=1)
    after = contents(output)
    assert after["processed_data/JPEG_Qrandom/raise/p0.jpg"] == b"kept as it is"
    assert {**after, "processed_data/JPEG_Qrandom/raise/p0.jpg": None} == {
        **before,
        "processed_data/JPEG_Qrandom/raise/p0.jpg": None,
    }


def test_broken_and_small_pictures_are_listed(
    sources: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, fake = sources
    (real / "p0.png").write_bytes((real / "p0.png").read_bytes()[:300])
    for folder in (real, fake / "firefly"):
        Image.fromarray(draw_scene(np.random.default_rng(5), (50, 90))).save(folder / "p1.png")
    Image.fromarray(draw_scene(np.random.default_rng(5), (70, 90))[..., 0]).save(real / "p2.png")
    masksim(tmp_path / "out", real, fake, codec="png", window=WINDOW, workers=2)
    told = capsys.readouterr()
    assert "p0.png: " in told.err
    assert "p1.png: 90x50 is smaller than the window of 64" in told.err
    assert told.err.count("left out: ") == 2
    assert "10 made, 0 there before, 2 left out" in told.out
    folder = tmp_path / "out" / "processed_data" / "uncompressed"
    # Synthbuster's small pictures are kept as they are, as published.
    assert Image.open(folder / "synthbuster" / "firefly" / "p1.png").size == (64, 50)
    assert Image.open(folder / "raise" / "p2.png").mode == "RGB"


def test_fixed_quality_and_webp_have_their_folders(sources: tuple[Path, Path], tmp_path: Path) -> None:
    masksim(tmp_path, sources[0], codec="webp", quality=80, window=WINDOW, workers=1)
    assert len(list((tmp_path / "processed_data" / "WEBP_Q80" / "raise").glob("*.webp"))) == 4


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--raise_images"):
        masksim(tmp_path)
    with pytest.raises(FileNotFoundError, match="dalle3"):
        masksim(tmp_path, synthbuster=tmp_path)
    with pytest.raises(ValueError, match="--quality"):
        masksim(tmp_path, tmp_path, quality=0)
