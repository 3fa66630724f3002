"""The callback end to end: figures against the logits themselves, one process against two, wrong data."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from callbacks.detection import DetectionEvaluation
from callbacks.detection_calibration import DetectionCalibration
from lightning_modules.functional.detection import binomial_interval
from lightning_modules.functional.detection_calibration import Calibration

PROGRAM = Path(__file__).with_name("detection_run.py")


@pytest.fixture(scope="session")
def toy():
    """The module `detection_run.py`, which is also a program for two processes."""
    spec = importlib.util.spec_from_file_location("detection_run", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def one(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    module, run = toy.evaluate(str(folder))
    return folder / "version_0", module, {name: value.item() for name, value in run.callback_metrics.items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def read_results(folder, stem="results"):
    rows = json.loads((folder / f"{stem}.json").read_text())["results"]
    return {(row["metric"], row["group"]): row for row in rows}


def samples(toy, **options):
    data = toy.Pictures(121, **options)
    rows = [data[i] for i in range(len(data))]
    logits = np.stack([row["logit"].numpy() for row in rows]).astype(float)
    return logits, np.array([row["generator"] for row in rows]), rows


def brute_auroc(scores, labels):
    real, fake = scores[~labels][None], scores[labels][:, None]
    return float(((fake > real) + 0.5 * (fake == real)).mean())


def test_figures_are_those_of_the_logits(toy, one):
    folder, _, logged = one
    logits, kinds, rows = samples(toy, views=("native", "jpeg_75"))
    labels, results = kinds != "real", read_results(folder)

    def value(metric, group=""):
        return results[metric, group]["value"]

    for view, suffix in ((0, ""), (1, "@jpeg_75")):
        largest = logits[:, view].max(axis=1)
        assert value("auroc", suffix) == pytest.approx(brute_auroc(largest, labels), abs=1e-12)
        for kind, scores in (("a", logits[:, view, 0]), ("b", logits[:, view, 1]), ("unseen", largest)):
            where = ~labels | (kinds == kind)
            assert value("auroc", kind + suffix) == pytest.approx(brute_auroc(scores[where], labels[where]), abs=1e-12)
            assert value("any_auroc", kind + suffix) == pytest.approx(
                brute_auroc(largest[where], labels[where]), abs=1e-12
            )
            right = (scores >= 0) == labels
            assert value("accuracy", kind + suffix) == pytest.approx(right[where].mean(), abs=1e-12)
    assert ("auroc", "c") not in results
    quality = np.array([row["quality"] for row in rows])
    band = (quality >= 65) & (quality < 75)
    assert results["auroc", "quality_65-74"]["n"] == band.sum()
    assert value("auroc", "quality_65-74") == pytest.approx(brute_auroc(logits[band, 0].max(axis=1), labels[band]))
    assert logged["test/auroc/a"] == pytest.approx(value("auroc", "a"), abs=1e-6)
    assert results["auroc", ""]["low"] < value("auroc") < results["auroc", ""]["high"]


def test_nominal_rates_have_binomial_intervals(toy, one):
    folder, module, _ = one
    logits, kinds, rows = samples(toy, views=("native", "jpeg_75"))
    results, calibration = read_results(folder), module.calibration
    assert len(calibration) == sum(toy.KINDS[i % 6] == "real" for i in range(121))
    real = kinds == "real"
    p = calibration.any_p_value(logits)
    for percent in (1, 5, 10):
        flagged = p <= percent / 100
        for view, suffix in ((0, ""), (1, "@jpeg_75")):
            row = results[f"fpr_at_nominal_{percent}", f"any{suffix}"]
            count = int(flagged[real, view].sum())
            assert row["value"] == pytest.approx(count / real.sum())
            assert (row["low"], row["high"]) == pytest.approx(binomial_interval(count, int(real.sum())))
        assert results[f"any_tpr_at_nominal_{percent}", "b"]["value"] == pytest.approx(flagged[kinds == "b", 0].mean())
        own = calibration.p_values(logits)[kinds == "b", 0, 1] <= percent / 100
        assert results[f"tpr_at_nominal_{percent}", "b"]["value"] == pytest.approx(own.mean())
        first = real & (np.array([row["source"] for row in rows]) == "set0")
        assert results[f"any_fpr_at_nominal_{percent}", "set0"]["value"] == pytest.approx(flagged[first, 0].mean())
    assert results["any_p_auroc", "@jpeg_75"]["value"] == pytest.approx(brute_auroc(-p[:, 1], ~real), abs=1e-12)
    words = np.vectorize(calibration.verdict)(p)
    flips = words[:, 0] != words[:, 1]
    assert 0 < flips.mean() < 1
    assert results["verdict_flips", "@jpeg_75"]["value"] == pytest.approx(flips.mean())
    assert results["verdict_flips", "real@jpeg_75"]["value"] == pytest.approx(flips[real].mean())
    assert results["ece_calibrated", "a"]["n"] == (real | (kinds == "a")).sum()


def test_the_four_tables(toy, one):
    folder, _, _ = one
    logits, kinds, _ = samples(toy, views=("native", "jpeg_75"))
    lines = list(csv.DictReader((folder / "detection_tables.csv").open()))
    found = {(line["view"], line["table"], line["generator"]): line for line in lines}
    native, labels = logits[:, 0], kinds != "real"

    def auroc(kind, columns):
        where = ~labels | (kinds == kind)
        return 100 * brute_auroc(native[:, columns].max(axis=1)[where], labels[where])

    cases = {("specific", "a"): [0], ("specific", "b"): [1], ("head c", "a"): [2], ("head a", "unseen"): [0]}
    cases |= {("generic", kind): [0, 1, 2] for kind in ("a", "b", "unseen")}
    cases |= {("generalized", "a"): [1, 2], ("generalized", "b"): [0, 2], ("generalized", "unseen"): [0, 1, 2]}
    for (table, kind), columns in cases.items():
        line = found["native", table, kind]
        assert float(line["auroc"]) == pytest.approx(auroc(kind, columns), abs=1e-9), (table, kind)
    average = np.mean([auroc("a", [0]), auroc("b", [1])])
    assert float(found["native", "specific", "AVG"]["auroc"]) == pytest.approx(average)
    assert ("native", "specific", "unseen") not in found
    assert ("jpeg_75", "generic calibrated", "AVG") in found
    page = (folder / "detection_tables.md").read_text()
    assert "## generalized, native" in page
    assert f"| a | {auroc('a', [1, 2]):.2f} |" in page


@pytest.mark.parametrize("stem", ["results.json", "detection_tables.csv", "calibration.csv"])
def test_two_processes_give_what_one_gives(one, two, stem):
    ours, theirs = (folder / stem for folder in (one[0], two / "version_0"))
    if stem.endswith(".json"):
        ours, theirs = (json.loads(path.read_text())["results"] for path in (ours, theirs))
    else:
        ours, theirs = ours.read_text(), theirs.read_text()
    assert theirs == ours
    assert len(ours) > 20


def test_every_rank_has_the_calibration_and_figures_of_one_process(one, two):
    _, module, metrics = one
    saved = torch.load(two / "version_0" / "calibrated.ckpt", weights_only=True)["calibration"]["scores"]
    assert saved.tolist() == module.calibration.scores.tolist()
    for rank in (0, 1):
        theirs = json.loads((two / f"rank_{rank}.json").read_text())
        assert theirs["metrics"] == metrics
        assert theirs["scores"] == module.calibration.scores.tolist()
        assert theirs["agreed"] == [["native"], ["width"]], "a rank without pictures learns the columns"


def test_packaging_that_tells_all_is_warned_of(toy, tmp_path, capsys):
    run = toy.trainer(tmp_path, [DetectionEvaluation(resamples=0)])
    data = toy.Pictures(60, packaged=True)
    run.test(toy.Detector(), data.loader(), verbose=False)
    results = read_results(tmp_path / "version_0")
    assert results["packaging_auroc", "all_together"]["value"] == 1
    assert results["packaging_auroc", "format_PNG"]["value"] == 1
    assert results["packaging_auroc", "jpeg_quality"]["value"] == 1
    assert results["packaging_auroc", "width"]["value"] < 0.7
    assert "packaging alone separates generated from real as well as the detector" in capsys.readouterr().out


def test_packaging_that_tells_nothing_is_not(toy, one, tmp_path, capsys):
    run = toy.trainer(tmp_path, [DetectionEvaluation(resamples=0)])
    run.test(toy.Detector(), toy.Pictures(121, gap=4).loader(), verbose=False)
    assert read_results(tmp_path / "version_0")["packaging_auroc", "all_together"]["value"] < 0.65
    assert "packaging alone" not in capsys.readouterr().out


def test_without_calibration_verdicts_are_probabilities_of_a_half(toy, tmp_path):
    run = toy.trainer(tmp_path, [DetectionEvaluation(resamples=0)])
    run.test(toy.Detector(), toy.Pictures(121, views=("native", "webp_80")).loader(), verbose=False)
    results = read_results(tmp_path / "version_0")
    logits, _, _ = samples(toy, views=("native", "webp_80"))
    flips = (logits[:, 0].max(axis=1) >= 0) != (logits[:, 1].max(axis=1) >= 0)
    assert results["verdict_flips", "@webp_80"]["value"] == pytest.approx(flips.mean())
    assert not [name for name, _ in results if "nominal" in name]


def test_pictures_of_one_class_are_no_error(toy, tmp_path):
    data = toy.Pictures(1)  # a real one
    run = toy.trainer(tmp_path, [DetectionEvaluation(resamples=5)])
    run.test(toy.Detector(), data.loader(), verbose=False)
    assert ("auroc", "") not in read_results(tmp_path / "version_0")


def test_a_calibration_of_other_heads_is_refused(toy, tmp_path):
    module = toy.Detector()
    module.calibration = Calibration.fit(np.zeros((5, 2)), ["a", "x"])
    run = toy.trainer(tmp_path, [DetectionEvaluation()])
    with pytest.raises(ValueError, match="the calibration is of heads a, x, the detector has a, b, c: run validate"):
        run.test(module, toy.Pictures(6).loader(), verbose=False)


def test_logits_that_are_no_number_are_counted(toy, tmp_path):
    class Broken(toy.Detector):
        def test_step(self, batch, batch_idx):
            return {**self.validation_step(batch, batch_idx), "logit": torch.full_like(batch["logit"], torch.nan)}

    run = toy.trainer(tmp_path, [DetectionEvaluation()])
    with pytest.raises(ValueError, match="6 of 6 pictures have logits that are not a number"):
        run.test(Broken(), toy.Pictures(6).loader(), verbose=False)


def test_a_module_without_heads_is_named(toy, tmp_path):
    run = toy.trainer(tmp_path, [DetectionCalibration()])
    with pytest.raises(ValueError, match="DetectionCalibration needs `generators` in the hparams of Detector"):
        run.validate(toy.Detector([]), toy.Pictures(6).loader(), verbose=False)


def test_bands_must_ascend():
    with pytest.raises(ValueError, match=r"`quality_bands` of DetectionEvaluation must ascend, got \[80, 70\]"):
        DetectionEvaluation(quality_bands=[80, 70])


def test_validation_does_not_judge_a_calibration_by_its_own_pictures(toy, tmp_path):
    module = toy.Detector()
    module.calibration = Calibration.fit(np.zeros((5, 3)), toy.HEADS)
    run = toy.trainer(tmp_path, [DetectionEvaluation(stages=["val"], resamples=0)])
    run.validate(module, toy.Pictures(12).loader(), verbose=False)
    assert not [metric for metric, _ in read_results(tmp_path / "version_0", "results_val") if "nominal" in metric]
