"""The callback end to end: DISC's recorded figures, one process against two, and what it says when data are wrong."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from callbacks.copy_detection import CopydaysEvaluation, CopyDetectionEvaluation
from lightning_modules.functional.challenge_files import read_predictions

GOLDENS = Path(__file__).parents[1] / "goldens" / "sscd"
PROGRAM = Path(__file__).with_name("copy_run.py")


@pytest.fixture(scope="session")
def copies():
    """The module `copy_run.py`, which is also a program for two processes."""
    spec = importlib.util.spec_from_file_location("copy_run", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def disc(copies):
    facts = json.loads((GOLDENS / "metrics_manifest.json").read_text())["disc_eval"]
    tensors = load_file(GOLDENS / "metrics.safetensors")
    pairs = [(int(query[1:]), int(reference[1:])) for query, reference in facts["ground_truth"]]
    rows = (tensors[f"disc.{name}"] for name in ("refs", "queries", "training"))
    return facts, copies.ToyCopies(*rows, pairs, batch_size=64)


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("mode", "k", "everywhere"), [("k10_per_query", 10, False), ("k3_no_norm", 3, True)])
def test_the_file_of_the_reference_is_made(copies, disc, tmp_path, mode, k, everywhere):
    facts, data = disc
    wanted = facts["global_candidates"][mode] if everywhere else facts[mode]
    codecs = list(dict.fromkeys(row["codec"] for row in wanted))
    norm = None if everywhere else "1.0[0,2]"
    callback = CopyDetectionEvaluation(codecs, norm, k, everywhere, resamples=0, metadata="toy")
    copies.trainer(str(tmp_path), [callback]).test(copies.Echo(), datamodule=data, verbose=False)
    made = rows_of(tmp_path / "version_0" / "disc_metrics.csv")
    assert list(made[0]) == ["codec", "score_norm", "uAP", "accuracy-at-1", "recall-at-p90", "metadata"]
    wanted = [row for row in wanted if row["score_norm"] in ("None", "1.00[0,2]")]
    assert [(row["codec"], row["score_norm"]) for row in made] == [(r["codec"], r["score_norm"]) for r in wanted]
    for ours, theirs in zip(made, wanted, strict=True):
        # Float32 near-ties can swap two ranks.
        assert float(ours["uAP"]) == pytest.approx(theirs["uAP"], abs=1e-4)
        for column in ("accuracy-at-1", "recall-at-p90"):
            assert float(ours[column]) == pytest.approx(theirs[column])
    assert list((tmp_path / "version_0").glob("descriptors_*")) == [], "descriptors are gone when done"


def test_default_codecs_are_the_references(copies, disc, tmp_path):
    facts, data = disc
    for scale, wanted in ((1, "default_codecs"), (2, "default_codecs_if_not_normalised")):
        scaled = copies.ToyCopies(*(scale * data.descriptors[data.task.role == role] for role in (0, 1, 2)), [(0, 0)])
        callback = CopyDetectionEvaluation(resamples=0, output_dir=str(tmp_path / wanted))
        copies.trainer(str(tmp_path), [callback]).test(copies.Echo(), datamodule=scaled, verbose=False)
        made = rows_of(tmp_path / wanted / "disc_metrics.csv")
        assert [row["codec"] for row in made] == 2 * facts[wanted]


@pytest.fixture(scope="module")
def one(copies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return folder, copies.evaluate(str(folder))[0]


def test_every_figure_has_its_groups_and_interval(one):
    folder, values = one
    assert values["val/uAP"] == values["test/uAP"] > 0.3
    assert values["test/uAP/PCAW4,L2norm,Flat SN 1.00[0,2]"] != values["test/uAP"]
    assert values["test/accuracy_at_1/mild/jpeg SN 1.00[0,2]"] > 0
    assert values["test/threshold_at_p90_minus_squared_l2"] < 0
    results = json.loads((folder / "version_0" / "results.json").read_text())["results"]
    assert len(results) == 4 * 3 * 6
    groups = {result["group"] for result in results if result["metric"] == "threshold_at_p90_inner_product"}
    assert groups == {f"{group} SN 1.00[0,2]".strip() for group in ("", "mild/jpeg", "strong")} | {
        f"{group} PCAW4,L2norm,Flat SN 1.00[0,2]".strip() for group in ("", "mild/jpeg", "strong")
    }
    for result in results:
        if not result["metric"].startswith("threshold"):
            assert result["low"] <= result["value"] <= result["high"]
    for metric in ("uAP", "threshold_at_p90_minus_squared_l2"):
        counts = {result["group"]: result["n"] for result in results if result["metric"] == metric}
        assert (counts[""], counts["mild/jpeg"], counts["strong"]) == (15, 7, 8)


def test_predictions_are_those_of_brute_force(copies, one):
    folder, values = one
    data = copies.drawn_copies()
    references, queries = data.descriptors[:40], data.descriptors[40:55]
    distance = np.square(queries[:, None] - references).sum(-1)
    made = read_predictions(folder / "version_0" / "predictions_Flat_None.csv")
    assert len(made) == 150
    assert [score for *_, score in made] == sorted((score for *_, score in made), reverse=True)
    for query, reference, score in made:
        assert score == pytest.approx(-distance[int(query[1:]), int(reference[1:])], abs=1e-5)
    best = distance.argmin(1)
    found = [best[query - 40] == reference for query, reference in data.task.pairs.tolist()]
    assert values["test/accuracy_at_1"] == pytest.approx(np.mean(found))


def test_two_processes_give_what_one_gives(one, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path)], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        assert json.loads((tmp_path / f"rank_{rank}.json").read_text()) == one[1]
    for name in ("results.json", "results_val.json"):
        ours, theirs = (json.loads((f / "version_0" / name).read_text())["results"] for f in (one[0], tmp_path))
        assert ours == theirs
    for name in ("disc_metrics.csv", "predictions_PCAW4_L2norm_Flat_1.00_0_2.csv"):
        assert (one[0] / "version_0" / name).read_text() == (tmp_path / "version_0" / name).read_text()
    errors = [(tmp_path / f"error_{rank}.txt").read_text().split(": ", 1)[1] for rank in (0, 1)]
    assert errors[0] == errors[1] != ""


def test_images_without_descriptor_count_as_not_found(copies, tmp_path):
    data = copies.drawn_copies()
    callback = CopyDetectionEvaluation(["Flat"], None, resamples=0)
    # Eight batches of seven: all 40 references and 15 queries, no background, then six alone: no query at all.
    for batches, found in ((8, True), (5, False)):
        run = copies.trainer(str(tmp_path), [callback], limit_test_batches=batches)
        with pytest.warns(UserWarning, match="of 78 images have no descriptor"):
            run.test(copies.Echo(), datamodule=data, verbose=False)
        assert (float(run.callback_metrics["test/uAP"]) > 0) == found


def test_a_codec_that_cannot_be_learnt_is_left_out(copies, tmp_path):
    callback = CopyDetectionEvaluation(["Flat", "PCAW9,L2norm,Flat"], None, resamples=0)
    run = copies.trainer(str(tmp_path), [callback])
    with pytest.warns(UserWarning, match="codec PCAW9,L2norm,Flat is left out: 9 axes cannot be learnt from 23"):
        run.test(copies.Echo(), datamodule=copies.drawn_copies(), verbose=False)
    assert [row["codec"] for row in rows_of(tmp_path / "version_0" / "disc_metrics.csv")] == ["Flat"]


def test_mistakes_are_named_before_the_work(copies, tmp_path):
    data = copies.drawn_copies(background=1)
    data.task.role[data.task.role == 2] = 0
    run = copies.trainer(str(tmp_path), [CopyDetectionEvaluation()])
    with pytest.raises(ValueError, match=r"score normalisation 1.0\[0,2\] learns from background images"):
        run.test(copies.Echo(), datamodule=data, verbose=False)
    run = copies.trainer(str(tmp_path), [CopyDetectionEvaluation(score_norm=None)])
    with pytest.raises(ValueError, match=r"needs 'descriptor' from Echo\.test_step"):
        run.test(copies.Echo(["descriptor"]), datamodule=data, verbose=False)
    assert list((tmp_path / "version_0").glob("descriptors_*")) == [], "an error takes the descriptors along"
    run = copies.trainer(str(tmp_path), [CopyDetectionEvaluation(score_norm=None)])
    with pytest.raises(ValueError, match="NoneType has no retrieval_task"):
        run.test(copies.Echo(), data.test_dataloader(), verbose=False)
    for wrong, message in (
        ({"k": 0}, "`k` of .* at least 1, got 0"),
        ({"codecs": ["PQ8"]}, "codec 'PQ8' .* must end in Flat"),
        ({"score_norm": "2"}, "score normalisation '2'"),
    ):
        with pytest.raises(ValueError, match=message):
            CopyDetectionEvaluation(**wrong)


def test_descriptors_are_written_as_the_challenge_takes_them(copies, tmp_path):
    pytest.importorskip("h5py", reason="h5py is not installed: pip install h5py")
    from lightning_modules.functional.challenge_files import read_descriptors

    data = copies.drawn_copies()
    callback = CopyDetectionEvaluation(["Flat"], None, resamples=0, challenge_files=["descriptors"])
    copies.trainer(str(tmp_path), [callback]).test(copies.Echo(), datamodule=data, verbose=False)
    read = read_descriptors(tmp_path / "version_0" / "descriptors.h5")
    assert np.array_equal(np.concatenate([read.references, read.queries]), data.descriptors[:55])
    assert [*read.reference_ids, *read.query_ids] == data.task.names[:55]


def test_copydays_blocks_are_averaged_and_pooled(copies, tmp_path):
    # Three originals, a distractor; four queries: found first, second, third, and a distractor's own double first.
    corners = np.eye(4, dtype=np.float32)
    queries = np.array(
        [corners[0], corners[1] + 1.1 * corners[0], [1.2, 1.1, 1, 0], corners[3] + 0.1 * corners[2]], np.float32
    )
    data = copies.ToyCopies(
        corners, queries, corners[:0], [(0, 0), (1, 1), (2, 2), (3, 2)], {"original": [0], "strong": [1, 2, 3]}
    )
    callback = CopydaysEvaluation(["Flat"], resamples=10)
    run = copies.trainer(str(tmp_path), [callback])
    run.test(copies.Echo(), datamodule=data, verbose=False)
    expected = [1.0, 1 / 4, 1 / 6, 1 / 4]
    assert float(run.callback_metrics["test/mAP/original"]) == 1
    assert float(run.callback_metrics["test/strong_mAP"]) == pytest.approx(np.mean(expected[1:]))
    (row,) = rows_of(tmp_path / "version_0" / "copydays_metrics.csv")
    assert list(row) == ["codec", "strong_mAP", "overall_uAP"]
    assert float(row["strong_mAP"]) == pytest.approx(np.mean(expected[1:]))


def test_sanity_checking_leaves_nothing(copies, tmp_path):
    callback = CopyDetectionEvaluation()
    quiet = types.SimpleNamespace(sanity_checking=True, log_dir=str(tmp_path))
    callback.on_validation_epoch_start(quiet, None)
    callback.on_validation_batch_end(quiet, None, {"index": np.arange(2), "descriptor": None}, {}, 0)
    callback.on_validation_epoch_end(quiet, None)
    assert list(tmp_path.iterdir()) == []
