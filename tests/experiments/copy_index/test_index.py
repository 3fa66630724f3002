"""`sealmark index`, through the command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.cli import main
from experiments.copy_index import embedding
from experiments.copy_index.manifest import read_manifest

DIMS = 16


def unit_rows(seed: int, count: int) -> Any:
    rows = np.random.default_rng(seed).normal(size=(count, DIMS)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def index(*words: object) -> int:
    try:
        return main(["index", *(str(word) for word in words)])
    except SystemExit as error:
        return int(error.code or 0)


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "matches.jsonl").read_text().splitlines()]


def test_build_add_and_search(
    tmp_path: Path, predicted: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert index("build", "--output", tmp_path / "i", "--descriptors", f"[{predicted(1, 30)}, {predicted(2, 4)}]") == 0
    told = capsys.readouterr().out
    assert "flat, 34 descriptors of 16 numbers" in told
    assert "recall@1 1.000, recall@10 1.000" in told
    assert "34 queries at a cosine of 0.75" in told
    assert index("add", "--index", tmp_path / "i", "--descriptors", predicted(3, 6)) == 0
    assert "added 6, of which 0 replace" in capsys.readouterr().out
    words = ("--descriptors", predicted(2, 4), "--matches", 3, "--output", tmp_path / "out")
    assert index("search", "--index", tmp_path / "i", *words) == 0
    told = capsys.readouterr().out
    assert "4 queries\nnot calibrated: no verdicts" in told
    rows = np.concatenate([unit_rows(1, 30), unit_rows(2, 4), unit_rows(3, 6)])
    paths = [f"/{seed}/{i}.jpg" for seed, count in ((1, 30), (2, 4), (3, 6)) for i in range(count)]
    for i, answer in enumerate(answers(tmp_path / "out")):
        scores = rows @ unit_rows(2, 4)[i]
        order = np.argsort(-scores)[:3]
        assert answer["path"] == f"/2/{i}.jpg"
        assert [match["path"] for match in answer["matches"]] == [paths[j] for j in order]
        assert [match["score"] for match in answer["matches"]] == pytest.approx(scores[order].tolist(), abs=1e-5)
        assert {match["verdict"] for match in answer["matches"]} == {None}
    assert not list((tmp_path / "out").glob("*.part"))


def test_calibrate_then_search_gives_the_precision_that_counting_gives(
    tmp_path: Path, write_predictions: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """120 references; 60 queries of which 40 are copies, the fainter the later."""
    rows, rng = unit_rows(1, 120), np.random.default_rng(5)
    references = write_predictions(tmp_path / "r", rows, [f"/r{i}" for i in range(120)])
    queries = np.concatenate(
        [rows[:40] + np.linspace(0.02, 0.6, 40)[:, None] * rng.normal(size=(40, DIMS)), unit_rows(7, 20)]
    )
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    asked = write_predictions(tmp_path / "q", queries, [f"/q{i}" for i in range(60)])
    pairs = [f"/q{i},/r{i}" for i in range(40)] + ["/other,/r1"]
    (tmp_path / "pairs.csv").write_text("query,reference\n" + "\n".join(pairs))
    assert index("build", "--output", tmp_path / "i", "--descriptors", references) == 0
    words = ("--descriptors", asked, "--pairs", tmp_path / "pairs.csv", "--matches", 2)
    assert index("calibrate", "--index", tmp_path / "i", *words) == 0
    told = capsys.readouterr().out
    assert "60 queries with 40 true pairs, 120 candidates" in told
    assert (
        index("search", "--index", tmp_path / "i", "--descriptors", asked, "--output", tmp_path / "o", "--matches", 2)
        == 0
    )
    scores = queries @ rows.T
    found = np.argsort(-scores, axis=1)[:, :2]
    all_scores = np.take_along_axis(scores, found, axis=1)
    right = (found == np.arange(60)[:, None]) & (np.arange(60) < 40)[:, None]
    some = 0
    for i, answer in enumerate(answers(tmp_path / "o")):
        for j, match in enumerate(answer["matches"]):
            above = np.sort(all_scores[all_scores >= all_scores[i, j] - 1e-6])
            lowest = (
                min(right[all_scores >= s - 1e-6].mean() for s in above if (all_scores >= s - 1e-6).sum() >= 20)
                if len(above) >= 20
                else None
            )
            if lowest is not None and match["precision"] is not None:
                # Scores are written with six digits, so the step below may be hit.
                assert match["precision"] == pytest.approx(lowest, abs=0.03)
                some += 1
            assert match["verdict"] == ("copy" if (match["precision"] or 0) >= 0.9 else "no copy")
    assert some > 80
    assert read_manifest(tmp_path / "i").calibration["queries"] == 60  # type: ignore[index]
    (tmp_path / "pairs.csv").write_text("query,reference\n/nobody,/r1\n")
    assert index("calibrate", "--index", tmp_path / "i", *words) == 2
    assert "no query of" in capsys.readouterr().err


class Describer:
    """Answers with the mean colours of an image in a grid, as SSCD's module would with its descriptors."""

    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.batches: list[int] = []

    def prediction_fingerprint(self) -> str:
        return self.name

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        assert all(image.dtype == torch.uint8 for image in batch["image"])
        self.batches.append(len(batch["image"]))
        means = [torch.nn.functional.adaptive_avg_pool2d(image / 255, (2, 2)).flatten() for image in batch["image"]]
        records = [{"path": path, "index": int(i)} for path, i in zip(batch["path"], batch["index"], strict=True)]
        rows = torch.nn.functional.normalize(torch.stack(means) - 0.5)
        return {"records": records, "images": [], "descriptors": rows}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten photos of noise, one of them unreadable."""
    (tmp_path / "photos").mkdir()
    for i in range(10):
        coarse = np.random.default_rng(i).integers(256, size=(2, 2, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((64 + i, 48), Image.Resampling.NEAREST)
        image.save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "4.png").write_bytes(b"no image")
    return tmp_path / "photos"


def test_images_are_described_and_searched_for(
    tmp_path: Path,
    photos: Path,
    write_predictions: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = Describer()
    good = [photos / f"{i}.png" for i in range(10) if i != 4]
    monkeypatch.setattr(embedding, "load_module", lambda *_: module)
    monkeypatch.setattr(embedding, "read_metadata", lambda _: {})
    monkeypatch.setattr(embedding, "_BATCH_PIXELS", 4 * 64 * 48)
    rows = np.concatenate([part for _, part in embedding.embed_images(module, [str(photos)])])  # type: ignore[arg-type]
    assert module.batches == [4, 4, 1]
    predicted = write_predictions(tmp_path / "p", rows, [str(path) for path in good], weights="sscd_disc_mixup.pt")
    assert index("build", "--output", tmp_path / "i", "--descriptors", predicted) == 0
    small = tmp_path / "small copy.jpg"
    Image.open(good[6]).resize((40, 40)).save(small, quality=95)
    capsys.readouterr()
    words = ("--index", tmp_path / "i", "--ckpt_path", "any.ckpt", "--output", tmp_path / "out")
    assert index("search", *words, "--images", f'["{small}", "{photos}"]', "--matches", 2) == 0
    told = capsys.readouterr()
    assert f"left out: {photos / '4.png'}" in told.err
    assert "10 queries, 10 with a copy in the index\nnot calibrated: a copy is a score of 0.75 and more" in told.out
    found = {answer["path"]: answer["matches"] for answer in answers(tmp_path / "out")}
    assert found[str(small)][0]["path"] == str(good[6])
    assert found[str(small)][0]["score"] > 0.99
    assert found[str(small)][0]["verdict"] == "copy"
    assert all(found[str(path)][0]["path"] == str(path) for path in good)
    picture = np.asarray(Image.open(tmp_path / "out" / "matches.png"))
    # Eight rows of a query and two matches; the first row's are the same picture, but for its size.
    assert picture.shape == (18 + 8 * (224 + 18 + 4), 3 * 228 - 4, 3)
    corner = picture[18 + 20 : 18 + 60, 20:60].mean(axis=(0, 1))
    beside = picture[18 + 20 : 18 + 60, 228 + 20 : 228 + 60].mean(axis=(0, 1))
    other = picture[18 + 20 : 18 + 60, 456 + 20 : 456 + 60].mean(axis=(0, 1))
    assert np.abs(corner - beside).max() < 6
    assert np.abs(corner - other).max() > 6

    module.name = "b"
    assert index("search", *words, "--images", small) == 2
    assert "is not the model that the index was made with" in capsys.readouterr().err
    module.name = "a"
    assert index("search", *words, "--images", photos / "4.png") == 2
    assert "none of the 1 images could be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("search", "--index", "I", "--output", "o"), "either --descriptors or --images"),
        (("search", "--index", "I", "--output", "o", "--images", "x", "--descriptors", "D"), "either --descriptors or"),
        (("search", "--index", "I", "--output", "o", "--images", "x"), "--images needs --ckpt_path"),
        (("search", "--index", "I", "--output", "o", "--descriptors", "D", "--precision", 2), "--precision in (0, 1]"),
        (("search", "--index", "nowhere", "--output", "o", "--descriptors", "D"), "nowhere is no index"),
        (("build", "--output", "J", "--descriptors", "nowhere"), "nowhere holds no predictions"),
        (("build", "--output", "J", "--descriptors", "[]"), "--descriptors names no folder"),
        (("build", "--output", "J", "--descriptors", "D", "--kind", "ivf_pq"), "at least 256"),
        (("build", "--output", "I", "--descriptors", "D"), "is an index already"),
        (("add", "--index", "I", "--descriptors", "D"), "--duplicates"),
        (("calibrate", "--index", "I", "--descriptors", "D", "--pairs", "none.csv"), "no file of pairs at none.csv"),
    ],
)
def test_mistakes_are_told_in_a_line(
    tmp_path: Path,
    predicted: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[object, ...],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    predicted(1, 30).rename("D")
    assert index("build", "--output", "I", "--descriptors", "D") == 0
    capsys.readouterr()
    assert index(*words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1
