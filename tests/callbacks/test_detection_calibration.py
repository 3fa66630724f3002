"""The stage `validate`: what it calibrates, writes and saves, and what a later test makes of it."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.detection_calibration import DetectionCalibration
from callbacks.metrics.calibration_report import calibration_lines
from lightning_modules.functional.detection_calibration import Calibration


@pytest.fixture(scope="session")
def toy():
    """The module `detection_run.py`."""
    spec = importlib.util.spec_from_file_location("detection_run", Path(__file__).with_name("detection_run.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expected(toy, data, limits=(0.01, 0.05)):
    rows = [data[i] for i in range(len(data))]
    logits = np.stack([row["logit"][0].numpy() for row in rows])
    kinds = np.array([row["generator"] for row in rows])
    real = kinds == "real"
    return Calibration.fit(logits[real], toy.HEADS, logits[~real], kinds[~real], limits)


def validated(toy, folder, data, module=None, **options):
    module = module or toy.Detector()
    toy.trainer(folder, [DetectionCalibration(**options)]).validate(module, data.loader(), verbose=False)
    return module


def test_validate_calibrates_from_real_pictures_of_the_native_view(toy, tmp_path, capsys):
    data = toy.Pictures(130, views=("native", "jpeg_75"))
    module = validated(toy, tmp_path, data, unsure_limit=0.1)
    wanted = expected(toy, data, (0.01, 0.1))
    np.testing.assert_array_equal(module.calibration.scores, wanted.scores)
    np.testing.assert_array_equal(module.calibration.scale, wanted.scale)
    assert module.calibration.limits == (0.01, 0.1)
    assert module.calibration.fitted.tolist() == [True, True, False]
    lines = {
        (row["figure"], row["group"]): row for row in csv.DictReader((tmp_path / "version_0/calibration.csv").open())
    }
    point = wanted.operating_point(1, 0.05)
    assert float(lines["threshold_5", "b"]["value"]) == point.threshold
    assert float(lines["fpr_5", "b"]["high"]) == point.high
    assert float(lines["temperature", "a"]["value"]) == wanted.temperature[0]
    assert float(lines["ece_fitted", "a"]["value"]) < float(lines["ece", "a"]["value"])
    assert ("temperature", "c") not in lines
    printed = capsys.readouterr().out
    assert "calibration from 65 real pictures" in printed
    assert "warning: 65 real calibration pictures cannot show p <= 0.01 (the least p is 0.0152): 99 are" in printed


def test_rates_of_sets_leave_each_picture_out(toy, tmp_path):
    data = toy.Pictures(60)
    rows = [data[i] for i in range(60)]
    logits = np.stack([row["logit"][0].numpy() for row in rows]).astype(float)
    kinds, sources = (np.array([row[key] for row in rows]) for key in ("generator", "source"))
    real = kinds == "real"
    lines = calibration_lines(Calibration.fit(logits[real], toy.HEADS), logits, real, kinds, sources)
    found = {(line.figure, line.group): line for line in lines}
    p = np.array(
        [
            Calibration.fit(np.delete(logits[real], i, axis=0), toy.HEADS).any_p_value(row)
            for i, row in enumerate(logits[real])
        ]
    )
    for name in ("set0", "set1"):
        line = found["fpr_10", f"any@{name}"]
        assert line.value == pytest.approx(np.mean(p[sources[real] == name] <= 0.1))
        assert line.n == (sources[real] == name).sum()
        assert line.low <= line.value <= line.high
    assert found["fpr_10", "any@set0"].value != found["fpr_10", "any@set1"].value


def test_the_saved_checkpoint_brings_the_calibration_and_its_step_back(toy, tmp_path):
    data = toy.Pictures(60)
    module = validated(toy, tmp_path, data)
    path = tmp_path / "version_0" / "calibrated.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (3, 77)
    assert not list(path.parent.glob(".*.part"))
    fresh = toy.Detector()
    toy.trainer(tmp_path, []).test(fresh, data.loader(), ckpt_path=path, verbose=False)
    np.testing.assert_array_equal(fresh.calibration.scores, module.calibration.scores)


def test_a_second_calibration_replaces_the_first(toy, tmp_path):
    module = validated(toy, tmp_path, toy.Pictures(60))
    other = toy.Pictures(48, seed=5)
    validated(toy, tmp_path, other, module)
    np.testing.assert_array_equal(module.calibration.scores, expected(toy, other).scores)
    assert (tmp_path / "version_1" / "calibrated.ckpt").is_file()


@pytest.mark.parametrize("during_fit", [False, True])
def test_training_calibrates_only_where_asked(toy, tmp_path, during_fit):
    checkpoint = ModelCheckpoint(tmp_path, filename="last", save_last=False)
    callbacks = [checkpoint, DetectionCalibration(during_fit=during_fit)]
    run = toy.trainer(tmp_path, callbacks, max_epochs=1, enable_checkpointing=True)
    module, data = toy.Detector(), toy.Pictures(42)
    run.fit(module, data.loader(), data.loader())
    assert (module.calibration is not None) == during_fit
    assert ("calibration" in torch.load(tmp_path / "last.ckpt", weights_only=True)) == during_fit
    assert not (tmp_path / "version_0" / "calibrated.ckpt").exists()


class OnlyGenerated(torch.utils.data.Subset):
    def loader(self):
        return torch.utils.data.DataLoader(self, batch_size=4, collate_fn=self.dataset.collate)


def test_without_real_pictures_there_is_nothing_to_calibrate(toy, tmp_path):
    data = OnlyGenerated(toy.Pictures(12), [1, 3, 5])
    with pytest.raises(ValueError, match="a calibration needs real pictures, got none"):
        validated(toy, tmp_path, data)
    run = toy.trainer(tmp_path, [DetectionCalibration(during_fit=True)], max_epochs=1)
    with pytest.warns(UserWarning, match="saw no real validation picture"):
        run.fit(toy.Detector(), data.loader(), data.loader())


def test_a_missing_output_is_named(toy, tmp_path):
    class Silent(toy.Detector):
        def validation_step(self, batch, batch_idx):
            return {"index": batch["index"]}

    with pytest.raises(ValueError, match=r"DetectionCalibration needs 'logit' from Silent.validation_step"):
        validated(toy, tmp_path, toy.Pictures(6), Silent())


@pytest.mark.parametrize("limits", [(0.05, 0.01), (0.0, 0.1), (0.01, 1.0)])
def test_bad_limits_are_named(limits):
    with pytest.raises(ValueError, match="0 < generated_limit <= unsure_limit < 1, got"):
        DetectionCalibration(*limits)
