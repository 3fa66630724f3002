"""Verification and reading end to end on answers whose figures are known."""

import json

import lightning.pytorch as pl
import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from torchmetrics.functional.text import char_error_rate

from callbacks.metrics.edit_distance import edit_distance
from callbacks.seal_tasks import ReadingEvaluation, VerificationEvaluation

TEXTS = [("Date: 3 Aprl", "Date: 3 April"), ("", "EUR 12"), ("whole", "whole"), ("abc", "xabd"), ("For the", "for he")]


class Echo(pl.LightningModule):
    def test_step(self, batch, batch_idx):
        return batch


def evaluate(folder, rows, callback):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, callbacks=[callback], logger=CSVLogger(folder, name=""),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.test(Echo(), DataLoader(rows, batch_size=4), verbose=False)
    found = json.loads((folder / "version_0/results.json").read_text())["results"]
    return {(row["metric"], row["group"]): row["value"] for row in found}


@pytest.mark.parametrize(("read", "text", "edits"), [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3)])
def test_edits_are_counted(read, text, edits):
    assert edit_distance(read, text) == edits


def test_edits_are_those_of_torchmetrics():
    rng = np.random.default_rng(0)
    for _ in range(30):
        read, text = ("".join(rng.choice(list("abc "), int(rng.integers(1, 12)))) for _ in range(2))
        assert edit_distance(read, text) == round(char_error_rate(read, text).item() * len(text))


def test_reading_is_scored_over_all_letters(tmp_path):
    rows = [{"index": i, "read": read, "text": text} for i, (read, text) in enumerate(TEXTS)]
    results = evaluate(tmp_path, rows, ReadingEvaluation(resamples=20))
    wanted = char_error_rate([read for read, _ in TEXTS], [text for _, text in TEXTS]).item()
    assert results["cer", ""] == pytest.approx(wanted, abs=1e-6)
    assert results["whole_lines", ""] == pytest.approx(1 / 5)


def test_verification_ranks_and_decides(tmp_path):
    rng = np.random.default_rng(0)
    truth, kinds = rng.random(31) < 0.5, np.array(["round", "square"])[rng.integers(0, 2, 31)]
    logits = rng.normal(size=31) + truth
    rows = [
        {"index": i, "logit": np.float32(logits[i]), "authentic": bool(truth[i]), "kind": str(kinds[i])}
        for i in range(31)
    ]
    results = evaluate(tmp_path, rows, VerificationEvaluation(resamples=20))

    def auroc(where):
        return (logits[truth & where][:, None] > logits[~truth & where]).mean()

    assert results["auroc", ""] == pytest.approx(auroc(np.ones(31, bool)))
    assert results["auroc", "square"] == pytest.approx(auroc(kinds == "square"))
    called = logits > 0
    precision, recall = (called & truth).sum() / called.sum(), (called & truth).sum() / truth.sum()
    assert results["precision", ""] == pytest.approx(precision)
    assert results["recall", ""] == pytest.approx(recall)
    assert results["f1", ""] == pytest.approx(2 * precision * recall / (precision + recall))
    assert results["accuracy", ""] == pytest.approx((called == truth).mean())


def test_a_missing_answer_is_named(tmp_path):
    with pytest.raises(ValueError, match="ReadingEvaluation needs 'read'"):
        evaluate(tmp_path, [{"index": 0, "text": "a"}], ReadingEvaluation())
