"""Comparing two runs: the interval of a difference of paired samples, and refusals of what cannot be paired."""

import numpy as np
import pytest

from callbacks.metrics.bootstrap import bootstrap_draws, interval_of, mean_of
from callbacks.results import Provenance, Result, save_results
from experiments.compare import RunResults, differences

SAMPLES = 400


def leave_run(folder, values, metric="uAP", seed=0, resamples=500):
    """What a test run of per-sample values leaves."""
    statistic = mean_of(values)
    draws = bootstrap_draws({"x": statistic}, len(values), resamples, seed)["x"]
    results = [
        Result(metric, "", float(values.mean()), *interval_of(draws), statistic.n, draws),
        Result("threshold", "", 0.5, float("nan"), float("nan"), 3),
    ]
    save_results(results, Provenance("test", 0, "ab", "", 0, 0, resamples, seed), folder)
    return folder


@pytest.fixture
def paired(tmp_path):
    rng = np.random.default_rng(0)
    hard = rng.normal(size=SAMPLES)
    better = hard + 0.1 + 0.1 * rng.normal(size=SAMPLES)
    return leave_run(tmp_path / "a", better), leave_run(tmp_path / "b", hard), better - hard


def test_the_interval_of_a_difference_is_that_of_the_samples_differences(paired):
    first, second, difference = paired
    (row,) = differences(RunResults.read(first, "results"), RunResults.read(second, "results"))
    assert row.name == "uAP"
    assert row.value == pytest.approx(difference.mean(), abs=1e-12)
    expected = bootstrap_draws({"x": mean_of(difference)}, SAMPLES, 500, 0)["x"]
    assert (row.low, row.high) == pytest.approx(interval_of(expected), abs=1e-5)
    # Their own intervals overlap; the paired one leaves no doubt.
    own = [RunResults.read(folder, "results").draws["uAP"] for folder in (first, second)]
    assert interval_of(own[0])[0] < interval_of(own[1])[1]
    assert row.low > 0


def test_what_cannot_be_paired_is_refused(paired, tmp_path):
    first = RunResults.read(paired[0], "results")
    values = np.zeros(SAMPLES)
    with pytest.raises(ValueError, match="resampled differently"):
        differences(first, RunResults.read(leave_run(tmp_path / "seed", values, seed=1), "results"))
    with pytest.raises(ValueError, match=r"400 samples .* on 10 in"):
        differences(first, RunResults.read(leave_run(tmp_path / "few", values[:10]), "results"))
    with pytest.raises(ValueError, match="no metric in common"):
        differences(first, RunResults.read(leave_run(tmp_path / "other", values, metric="iou"), "results"))
    with pytest.raises(FileNotFoundError, match=r"no results\.json in .*empty"):
        RunResults.read(tmp_path / "empty", "results")


def test_the_command_prints_the_table_and_refuses_a_typo_in_one_line(paired, sealmark, capsys):
    words = ["compare", "--first", str(paired[0]), "--second", str(paired[1])]
    assert sealmark(*words, recipe=()) == 0
    assert "| uAP |" in capsys.readouterr().out
    assert sealmark(*words, "--metrics", "[uAQ]", recipe=()) == 2
    assert "no metric uAQ in both runs: there are uAP" in capsys.readouterr().err
