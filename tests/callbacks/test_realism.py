"""The callback end to end on pictures whose figures are known."""

import json

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

from callbacks.metrics.domain_classifier import JudgeSettings
from callbacks.realism import RealismEvaluation

SIZE = 24
QUICK = JudgeSettings(steps=30, width=4, batch_size=16)


class Crops(Dataset):
    """Red squares on paper; the realised ones lost a known part of their ink and got the grain of real ones."""

    def __init__(self, length=40, lost=4, leak=0):
        self.length, self.lost, self.leak = length, lost, leak

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        ink = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
        ink[:, 6:18, 6:18] = True
        paper = 0.9 + 0.05 * torch.rand(3, 1, 1, generator=generator)
        flat = paper * torch.exp(-torch.tensor([0.2, 1.5, 1.3])[:, None, None] * ink)
        allowed = torch.zeros_like(ink)
        allowed[:, 4:20, 4:20] = True
        grain = 0.02 * torch.randn(3, SIZE, SIZE, generator=generator)
        worn = torch.where(torch.arange(SIZE)[None, :, None] < 6 + self.lost, paper.expand_as(flat), flat)
        realised = torch.where(allowed, (worn + grain).clamp(0, 1), flat)
        realised[:, 0, : self.leak] += 0.01
        real = (flat + 0.02 * torch.randn(3, SIZE, SIZE, generator=generator)).clamp(0, 1)
        return {"image": flat, "realised": realised, "real": real, "ink": ink, "allowed": allowed, "index": index}


class Forger(pl.LightningModule):
    def __init__(self, hide=()):
        super().__init__()
        self.hide = hide

    def test_step(self, batch, batch_idx):
        count = len(batch["index"])
        prior = {f"prior_{name}": torch.full((count,), value) for name, value in PRIORS.items()}
        return {key: value for key, value in (batch | prior).items() if key not in self.hide}

    validation_step = test_step


PRIORS = {"realised": 0.15, "synthetic": 0.2, "real": 0.125}


def run(folder, data, callback, module=None, stage="test"):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, callbacks=[callback], logger=CSVLogger(folder, name=""),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    getattr(trainer, stage)(module or Forger(), DataLoader(data, batch_size=7), verbose=False)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def read(folder):
    rows = json.loads((folder / "version_0/results.json").read_text())
    return {(row["metric"], row["group"]): row for row in rows["results"]}, rows["provenance"]


def test_figures_are_those_of_the_pictures(tmp_path):
    run(tmp_path, Crops(), RealismEvaluation(judge=QUICK, resamples=50))
    results, provenance = read(tmp_path)

    def value(metric, group=""):
        return results[metric, group]["value"]

    assert value("ink_iou", "input") == 1
    assert value("ink_iou", "realised") == pytest.approx(8 / 12, abs=0.01)
    assert value("ink_iou", "kept") == pytest.approx(8 / 12, abs=0.01)
    assert value("ink_visible", "realised") == pytest.approx(8 / 12, abs=0.01)
    assert value("legible", "realised") == value("legible", "input") == 1
    assert value("changed_outside_px") == 0
    assert value("exact_outside") == 1
    assert value("prior_gap", "realised") == pytest.approx(0.025)
    assert value("prior_gap", "synthetic") == pytest.approx(0.075)
    assert value("domain_auc", "synthetic") > 0.8
    assert results["domain_auc", "synthetic"]["low"] <= value("domain_auc", "synthetic")
    assert value("domain_auc_drop") == pytest.approx(value("domain_auc", "synthetic") - value("domain_auc", "realised"))
    assert "not measured" in provenance["settings"]["fid and kid"]
    assert not [key for key in results if key[0] in ("fid", "kid")]


def test_lost_ink_and_changes_outside_are_seen(tmp_path):
    run(tmp_path, Crops(lost=8, leak=3), RealismEvaluation(judge=QUICK, resamples=0))
    results, _ = read(tmp_path)
    assert results["legible", "realised"]["value"] == 0
    assert results["changed_outside_px", ""]["value"] == 3
    assert results["exact_outside", ""]["value"] == 0


def test_text_of_the_batch_is_what_is_legible(tmp_path):
    class WithText(Crops):
        def __getitem__(self, index):
            text = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
            text[:, 6:9] = True
            return super().__getitem__(index) | {"text": text}

    run(tmp_path, WithText(), RealismEvaluation(judge=QUICK, resamples=0))
    results, _ = read(tmp_path)
    assert results["legible", "realised"]["value"] == 0, "the lost rows are those of the text"
    assert results["ink_iou", "realised"]["value"] > 0.6


def test_validation_is_cheap_and_logs_what_labels_are_worth(tmp_path, monkeypatch):
    monkeypatch.setattr("callbacks.realism.judge_domains", lambda *parts: pytest.fail("judges take seconds"))
    logged = run(tmp_path, Crops(8), RealismEvaluation(judge=QUICK), stage="validate")
    assert logged["val/ink_iou/input"] == 1
    assert "val/domain_auc/realised" not in logged


def test_inception_is_used_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("callbacks.realism.inception_weights", lambda named: tmp_path)
    monkeypatch.setattr("callbacks.realism.inception_distances", lambda *parts: {"fid": 3.0, "kid": 0.5})
    run(tmp_path, Crops(12), RealismEvaluation(judge=QUICK, resamples=10))
    results, provenance = read(tmp_path)
    assert results["fid", "realised"]["value"] == 3
    assert results["kid", "synthetic"]["value"] == 0.5
    assert results["fid", "realised"]["low"] is None, "it is not resampled"
    assert "fid and kid" not in provenance["settings"]


def test_real_pictures_of_one_file_are_judged_together(tmp_path, monkeypatch):
    import callbacks.realism

    seen = []
    real = callbacks.realism.judge_domains

    def judge(crops, groups, *rest):
        seen.extend(groups)
        return real(crops, groups, *rest)

    class WithPaths(Crops):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"real_path": f"photo{index % 5}"}

    monkeypatch.setattr("callbacks.realism.judge_domains", judge)
    run(tmp_path, WithPaths(20), RealismEvaluation(judge=QUICK, resamples=0))
    assert seen == [f"photo{index % 5}" for index in range(20)]


def test_a_missing_output_is_named(tmp_path):
    with pytest.raises(ValueError, match="RealismEvaluation needs 'allowed' from"):
        run(tmp_path, Crops(8), RealismEvaluation(), Forger(hide=("allowed",)))
    with pytest.raises(ValueError, match="`judged_px` of RealismEvaluation must be at least 16"):
        RealismEvaluation(judged_px=8)


def test_more_samples_than_are_judged_change_only_the_judged(tmp_path):
    run(tmp_path, Crops(20), RealismEvaluation(judge=QUICK, judged_samples=12, resamples=0))
    results, _ = read(tmp_path)
    assert results["domain_auc", "realised"]["n"] == 12
    assert results["ink_iou", "realised"]["n"] == 20
    assert np.isfinite(results["feature_distance", "realised"]["value"])
