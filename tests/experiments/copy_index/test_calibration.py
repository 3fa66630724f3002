"""Calibration against counting, and what verdicts rest on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.copy_index.calibration import MIN_PAIRS, Judge, PrecisionCurve, is_published, read_pairs
from lightning_modules.functional.retrieval import Candidates


def drawn(seed: int, count: int, levels: int) -> tuple[Candidates, Any, Any]:
    """Return candidates whose scores have many ties, true pairs, and which candidates are true."""
    rng = np.random.default_rng(seed)
    score = (rng.integers(levels, size=count) / levels).astype(np.float32)
    correct = rng.random(count) < score
    pairs = Candidates(np.arange(count) // 3, np.arange(count) % 3 + 10, score)
    truth = np.stack([pairs.query[correct], pairs.reference[correct]], axis=1)
    # A true pair that nobody found changes no precision.
    return pairs, np.concatenate([truth, [[count, 5]]]), correct


def counted(score: Any, correct: Any, at: float) -> float | None:
    """Return by counting: the lowest precision over all thresholds from the next measured score up."""
    below = [threshold for threshold in np.unique(score) if threshold <= at]
    if not below:
        return None
    precisions = []
    for threshold in np.unique(score):
        chosen = correct[score >= threshold]
        if len(chosen) >= MIN_PAIRS and threshold >= below[-1]:
            precisions.append(chosen.mean())
    # Above the score that has enough pairs, the precision is that of enough pairs.
    enough = [threshold for threshold in np.unique(score) if (score >= threshold).sum() >= MIN_PAIRS]
    return float(min(precisions)) if precisions else float(correct[score >= enough[-1]].mean())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [2, 17, 100_000])
def test_precision_is_what_counting_says(seed: int, levels: int) -> None:
    pairs, truth, correct = drawn(seed, 150, levels)
    curve = PrecisionCurve.fit(pairs, truth)
    assert (np.diff(curve.score) > 0).all()
    assert (np.diff(curve.precision) > 0).all()
    for at in (*np.unique(pairs.score).tolist(), -0.1, 0.33, 0.5001, 2.0):
        assert curve.at(at) == pytest.approx(counted(pairs.score, correct, at)), at
    for wanted in (0.3, 0.6, 0.9, 1.0):
        threshold = curve.threshold(wanted)
        good = [score for score in np.unique(pairs.score) if (curve.at(score) or 0) >= wanted]
        assert threshold == (pytest.approx(good[0]) if good else None)


def test_one_wrong_pair_at_the_top_does_not_hide_the_rest_and_is_not_forgotten() -> None:
    score = np.linspace(1, 0, 100).astype(np.float32)
    pairs = Candidates(np.arange(100), np.zeros(100, np.int64), score)
    truth = np.stack([np.arange(1, 50), np.zeros(49, np.int64)], axis=1)
    curve = PrecisionCurve.fit(pairs, truth)
    assert curve.at(1.0) == pytest.approx(1 - 1 / MIN_PAIRS)
    assert curve.at(float(score[40])) == pytest.approx(1 - 1 / MIN_PAIRS)
    assert curve.at(float(score[99])) == pytest.approx(0.49)


def test_too_few_pairs_are_refused() -> None:
    pairs, truth, _ = drawn(0, MIN_PAIRS - 1, 9)
    with pytest.raises(ValueError, match="at least 20 candidate pairs, got 19"):
        PrecisionCurve.fit(pairs, truth)


def test_verdicts() -> None:
    curve = PrecisionCurve(np.array([0.2, 0.6]), np.array([0.4, 0.95]))
    judge = Judge(curve, published=True, wanted=0.9)
    assert judge(0.61) == {"verdict": "copy", "precision": 0.95, "precision_from": "calibration"}
    assert judge(0.59)["verdict"] == "no copy"
    assert judge(0.59)["precision"] == 0.4
    assert judge(0.1) == {"verdict": "no copy", "precision": None, "precision_from": "calibration"}
    assert "0.6000" in judge.told
    assert "nothing is called a copy" in Judge(curve, published=False, wanted=0.99).told

    stated = Judge(None, published=True, wanted=0.9)
    assert stated(0.75)["verdict"] == "copy"
    assert stated(0.75)["precision"] == 0.9
    assert "not measured here" in stated(0.75)["precision_from"]
    assert stated(0.7499)["verdict"] == "no copy"
    assert "not calibrated" in stated.told

    # The authors say nothing of 0.99, and nothing of other models.
    for silent in (Judge(None, published=True, wanted=0.99), Judge(None, published=False, wanted=0.9)):
        assert silent(0.99) == {"verdict": None, "precision": None, "precision_from": None}
        assert "no verdicts" in silent.told


@pytest.mark.parametrize(
    ("model", "published"),
    [
        ({"weights": "/x/sscd_disc_mixup.torchvision.pt"}, True),
        ({"weights": None, "ckpt_path": "sscd_disc_large.classy.pt"}, True),
        ({"weights": "sscd_imagenet_mixup.torchvision.pt"}, False),
        ({"weights": "/sscd_disc_mixup/mine.ckpt"}, False),
        ({}, False),
    ],
)
def test_only_the_published_disc_models_have_a_stated_precision(model: dict[str, Any], published: bool) -> None:
    assert is_published(model) == published


def test_pairs_are_read_from_both_formats(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('query,reference\n/q1,/r1\n/q2,\n\n/q1,"/r,2"\n')
    records = [{"query": "/q1", "reference": "/r1"}, {"query": "/q1", "reference": "/r,2"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(each) for each in records))
    for name in ("a.csv", "a.jsonl"):
        assert list(read_pairs(tmp_path / name)) == [("/q1", "/r1"), ("/q1", "/r,2")]


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", "a,b\nc\n"), ("a.csv", "a,b\n1,2,3"), ("a.jsonl", '{"query": "a"}'), ("a.jsonl", "x")]
)
def test_lines_that_are_no_pairs_are_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}, line \d, is no pair"):
        list(read_pairs(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="no file of pairs"):
        list(read_pairs(tmp_path / "absent.csv"))
