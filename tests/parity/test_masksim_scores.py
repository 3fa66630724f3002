"""MaskSim's metrics, calibration and verdicts equal the reference's recorded numbers."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from lightning_modules.functional.detection import Ranking, confusion_at, matthews, reference_accuracy
from lightning_modules.functional.verdicts import ReferenceTables, verdict_codes

METHOD = "masksim"
CALIBRATION, METRICS = "calibration.safetensors", "metrics.safetensors"
HEADS = ("sd1", "sd2", "sdxl", "dalle2", "dalle3", "midjourney", "firefly")
TOLERANCE = 1e-12


def described(folder, file):
    """What the manifest says about a file, by its name without the suffix as the recorder wrote it."""
    files = folder.manifest.get("files", {})
    return files.get(file.removesuffix(".safetensors"), {}) or files.get(file, {})


def metric_cases(folder):
    results = described(folder, METRICS).get("results", {}) if folder.has(METRICS) else {}
    return {f"{case}-{name}": (case, name, value) for case, row in results.items() for name, value in row.items()}


@pytest.mark.golden(METHOD, "metric", metric_cases)
def test_metric(golden):
    case, name, expected = golden.value
    tensors = golden.tensors(METRICS)
    real, fake = tensors[f"{case}.real"], tensors[f"{case}.fake"]
    scores, labels = np.concatenate([real, fake]), np.repeat([0, 1], [len(real), len(fake)])
    curve = Ranking.of(scores, labels).curve()
    found = {
        "auroc": curve.auroc,
        "aucpr": curve.pr_auc,
        "ap": curve.average_precision,
        "acc": lambda: reference_accuracy(scores, labels),
        "acc_best": curve.best_accuracy,
        "mcc": lambda: matthews(confusion_at(scores, labels, 0.5, strict=True)),
        "mcc_best": curve.best_mcc,
        "recall_at_fpr": lambda: curve.recall_at_fpr(float(name.rsplit("_", 1)[1])),
    }[name if not name.startswith("recall") else "recall_at_fpr"]()
    assert found[0] == pytest.approx(expected, abs=TOLERANCE)


def calibration_cases(folder):
    return ["tables"] if folder.has(CALIBRATION) else []


@pytest.mark.golden(METHOD, "verdict", calibration_cases)
def test_verdicts(golden):
    tensors = golden.tensors(CALIBRATION)
    tables = {head: np.sort(tensors[f"neg_{head}"]) for head in HEADS}
    reference = ReferenceTables(tables, np.sort(tensors["neg_max"]), "calibrated")
    scores = {head: tensors["query"][:, column] for column, head in enumerate(HEADS)}

    calibrated = np.stack([reference.calibrated(head, scores[head]) for head in HEADS], axis=1)
    rates = np.stack(list(reference.false_positive_rates(scores).values()), axis=1)
    generic = reference.generic_rate(scores)
    np.testing.assert_array_equal(np.rint(calibrated * 1000), tensors["n"])
    np.testing.assert_array_equal(calibrated, tensors["calibrated"])
    np.testing.assert_array_equal(calibrated.max(axis=1), tensors["generic_max"])
    np.testing.assert_array_equal(rates, tensors["fpr"])
    np.testing.assert_array_equal(verdict_codes(rates), tensors["verdict"])
    np.testing.assert_array_equal(generic, tensors["generic_fpr"])
    np.testing.assert_array_equal(verdict_codes(generic), tensors["generic_verdict"])


def released_facts(folder):
    return folder.manifest.get("real_calibration_facts", {})


def released_cases(folder):
    return dict(released_facts(folder))


@pytest.mark.golden(METHOD, "released_table", released_cases)
def test_released_calibration_files(golden):
    """The authors' own files, where SEALMARK_MASKSIM_CALIBRATION names their folder; they have no licence to copy."""
    folder = os.environ.get("SEALMARK_MASKSIM_CALIBRATION")
    if not folder:
        pytest.skip("SEALMARK_MASKSIM_CALIBRATION names no folder with the authors' calibration files")
    facts = golden.value
    for name, digest in facts["files"].items():
        assert hashlib.sha256(Path(folder, Path(name).name).read_bytes()).hexdigest() == digest
    reference = ReferenceTables.read(folder, [golden.id])
    assert len(reference.tables[golden.id]) == facts["N"]
    for score, rate in facts["fpr_at_score"].items():
        assert 1 - reference.calibrated(golden.id, float(score)) == pytest.approx(rate, abs=TOLERANCE)
    quantiles = facts["score_at_fpr_linear_quantile"]
    found = reference.thresholds([float(rate) for rate in quantiles])[golden.id]
    np.testing.assert_allclose(found, list(quantiles.values()), rtol=0, atol=TOLERANCE)
