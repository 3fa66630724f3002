import json

import pytest
import torch

from experiments.benchmarks import spectra

SMALL = {"denoiser_depth": 3, "denoiser_width": 4}


@pytest.mark.parametrize("names", [spectra.GENERATORS, spectra.GENERATORS[:1]])
def test_both_sides_score_alike_and_the_ratio_is_theirs(names):
    row = spectra.measure_scoring(names, 24, 3, 6.0, **SMALL)
    assert row["largest_logit_difference"] < 1e-4
    assert row["ours_s"] >= 0 <= row["one_by_one_s"]
    assert row["ratio"] > 0
    assert f"{len(names)} generator(s)" in row["what"]


def test_the_baseline_computes_each_denoiser_for_itself():
    detectors = spectra.make_detectors(("a", "b"), 24, **SMALL)
    passes = []
    for _, network in detectors:
        network.preproc.register_forward_hook(lambda *_: passes.append(1))
    spectra.score_one_by_one(detectors, torch.rand(1, 3, 24, 24))
    assert len(passes) == 2


def test_the_three_ways_to_train_are_timed():
    row = spectra.measure_training(24, 4, 2, 50.0, **SMALL)
    assert row["cached_s"] >= 0 <= row["through_denoiser_s"]
    assert row["learning_denoiser_s"] > 0
    json.dumps(row)


def test_a_median_of_ratios_is_reported():
    times = {"ours": [1.0, 2.0, 1.0], "other": [3.0, 2.0, 5.0]}
    row = spectra.summed_up("it", times, "ours", "other", 2.0)
    assert (row["ours_s"], row["other_s"], row["ratio"]) == (1.0, 3.0, 3.0)
    assert spectra.in_turns({"a": lambda: None}, 2).keys() == {"a"}
