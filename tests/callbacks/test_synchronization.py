"""Figures of corner errors, from a trainer's run over a module whose answers are known."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from callbacks.sync_calibration import SynchronizationCalibration
from callbacks.synchronization import SynchronizationEvaluation
from experiments.steps import read_results

TRANSFORMS = ("identity", "rotate_20")
SAMPLES = 60


class Known(LightningModule):
    """Returns rows of a table made beforehand."""

    transforms = TRANSFORMS
    looks = (1, 1)
    reliability = None

    def __init__(self, **changes):
        super().__init__()
        rng = np.random.default_rng(0)
        error = rng.exponential([2.0, 6.0], (SAMPLES, 2))
        self.answers = {
            "corner_error_px": error,
            "identity_error_px": np.tile([0.0, 20.0], (SAMPLES, 1)),
            "unmarked_error_px": 3 * error,
            "error_share": error / 64,
            "presence": rng.normal(4, 1, (SAMPLES, 2)),
            "spread": error / 64 / 2,
            "presence_unmarked": rng.normal(-4, 1, (SAMPLES, 2)),
            "spread_unmarked": rng.uniform(0.2, 1, (SAMPLES, 2)),
            "psnr": rng.normal(40, 1, SAMPLES),
            "ssim": rng.uniform(0.9, 1, SAMPLES),
        } | changes

    def forward_step(self, batch, batch_idx):
        index = batch["index"]
        rows = {name: torch.tensor(values)[index] for name, values in self.answers.items()}
        return {"index": index, "transforms": list(TRANSFORMS), **rows}

    validation_step = test_step = forward_step


def run(stage, module, callback, tmp_path):
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[callback], default_root_dir=tmp_path, enable_progress_bar=False
    )
    loader = DataLoader([{"index": place} for place in range(SAMPLES)], batch_size=7)
    getattr(trainer, stage)(module, loader, verbose=False)
    return trainer


def test_figures_are_those_of_the_table(tmp_path):
    module = Known()
    callback = SynchronizationEvaluation(output_dir=str(tmp_path), resamples=20)
    trainer = run("test", module, callback, tmp_path)
    error = module.answers["corner_error_px"]
    wanted = {
        ("corner_error_px", ""): error.mean(),
        ("identity_error_px", ""): 10.0,
        ("unmarked_error_px", ""): 3 * error.mean(),
        ("unmarked_error_px", "rotate_20"): 3 * error[:, 1].mean(),
        ("error_to_identity", ""): error.mean() / 10,
        ("within_3_px", ""): (error <= 3).mean(),
        ("within_10_px", "rotate_20"): (error[:, 1] <= 10).mean(),
        ("corner_error_px", "identity"): error[:, 0].mean(),
        ("psnr_db", ""): module.answers["psnr"].mean(),
        ("ssim", ""): module.answers["ssim"].mean(),
    }
    results = read_results(tmp_path)
    for name, value in wanted.items():
        assert results[name][0] == pytest.approx(value, rel=1e-6), name
        assert results[name][1] <= value <= results[name][2]
    assert trainer.callback_metrics["test/corner_error_px"].item() == pytest.approx(error.mean(), rel=1e-5)


def test_a_picture_without_a_change_does_not_spoil_the_mean_ratio(tmp_path):
    psnr = np.full(SAMPLES, 40.0)
    psnr[3] = np.inf
    callback = SynchronizationEvaluation(output_dir=str(tmp_path), resamples=0)
    run("test", Known(psnr=psnr), callback, tmp_path)
    assert read_results(tmp_path)["psnr_db", ""][0] == pytest.approx(40.0)


def test_a_module_without_transforms_is_told(tmp_path):
    module = Known()
    module.transforms = ()
    with pytest.raises(ValueError, match="needs `transforms` of Known"):
        run("test", module, SynchronizationEvaluation(), tmp_path)


def test_calibration_keeps_its_rates(tmp_path):
    module = Known()
    trainer = run("validate", module, SynchronizationCalibration(0.05, tolerance=0.1), tmp_path)
    reliability = module.reliability
    assert (reliability.marked, reliability.unmarked, reliability.score) == (2 * SAMPLES, 2 * SAMPLES, "presence")
    unmarked = np.sort(module.answers["presence_unmarked"].ravel())[::-1]
    assert reliability.absent_up_to == pytest.approx(unmarked[5], abs=1e-6), "6 of 121 ranks are 5 %"
    # Spread is half the error here, so that the limit lies just above half the tolerance.
    assert 0.05 <= reliability.reliable_up_to < 0.09
    metrics = trainer.callback_metrics
    assert metrics["val/unmarked_taken_for_marked"].item() <= 0.05
    assert metrics["val/wrong_among_reliable"].item() <= 0.05
    assert metrics["val/reliable"].item() > 0.5
    shares = sum(metrics[f"val/{state}"].item() for state in ("reliable", "unreliable", "absent"))
    assert shares == pytest.approx(1)


def test_calibration_by_spread_where_presence_was_not_learnt(tmp_path):
    module = Known(presence=np.full((SAMPLES, 2), -9.0), presence_unmarked=np.full((SAMPLES, 2), 9.0))
    module.reliability_score = "spread"
    run("validate", module, SynchronizationCalibration(0.05, tolerance=0.1), tmp_path)
    states = module.reliability.states([0.0, 0.0], [0.001, 0.9])
    assert states == ["reliable", "absent"]


def test_calibration_needs_a_second_look(tmp_path):
    nothing = np.full((SAMPLES, 2), np.nan)
    module = Known(spread=nothing, spread_unmarked=nothing)
    with pytest.warns(UserWarning, match=r"set model\.refinements to 1 or more"):
        run("validate", module, SynchronizationCalibration(), tmp_path)
    assert module.reliability is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"false_positive_rate": 1.0}, "must be between 0 and 1, got 1.0"), ({"tolerance": 0.0}, "must be above 0")],
)
def test_mistakes_are_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        SynchronizationCalibration(**arguments)
