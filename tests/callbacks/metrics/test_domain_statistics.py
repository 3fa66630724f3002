"""Statistics of judged samples against brute force, resampled and not."""

import numpy as np
import pytest
import torch

from callbacks.metrics.bootstrap import bootstrap_draws, interval_of, value_of
from callbacks.metrics.domain_classifier import JudgeSettings
from callbacks.metrics.domain_statistics import Judged, domain_statistics, judge_domains
from lightning_modules.functional.realism import frechet_distance


def brute(positive, negative):
    return ((positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)).mean()


def judged(samples=30):
    rng = np.random.default_rng(0)
    names = ("synthetic/synthetic", "synthetic/realised", "synthetic/real", "realised/realised", "realised/real")
    logits = {name: rng.normal(size=samples).round(1) for name in names}
    features = {name: rng.normal(size=(samples, 4)) for name in ("synthetic", "realised", "real")}
    return Judged(logits, features, rng.integers(0, 2, samples), rng.integers(0, 2, samples))


def test_figures_are_means_over_parts():
    found = judged()
    statistics = domain_statistics(found, np.arange(30))
    logits, real, drawn = found.logits, found.real_fold, found.drawn_fold

    def wanted(judge, pictures):
        return np.mean(
            [brute(logits[f"{judge}/real"][real == k], logits[f"{judge}/{pictures}"][drawn == k]) for k in range(2)]
        )

    assert value_of(statistics["domain_auc/realised"], 30) == pytest.approx(wanted("realised", "realised"))
    assert value_of(statistics["domain_auc/synthetic"], 30) == pytest.approx(wanted("synthetic", "synthetic"))
    assert value_of(statistics["domain_auc/realised_old_judge"], 30) == pytest.approx(wanted("synthetic", "realised"))
    drop = wanted("synthetic", "synthetic") - wanted("realised", "realised")
    assert value_of(statistics["domain_auc_drop"], 30) == pytest.approx(drop)
    ones = np.ones((1, 30))
    distance = np.mean(
        [
            frechet_distance(
                found.features["real"][real == k],
                found.features["realised"][drawn == k],
                ones[:, real == k],
                ones[:, drawn == k],
            )[0]
            for k in range(2)
        ]
    )
    assert value_of(statistics["feature_distance/realised"], 30) == pytest.approx(distance)


def test_a_resample_counts_samples_as_often_as_drawn():
    found = judged()
    members = np.arange(30) + 5  # five rows of the table were not judged
    weights = np.random.default_rng(1).integers(0, 3, (1, 35)).astype(float)
    times = weights[0, members].astype(int)
    got = domain_statistics(found, members)["domain_auc/realised"](weights)[0]
    parts = []
    for k in range(2):
        real = np.repeat(found.logits["realised/real"], times * (found.real_fold == k))
        drawn = np.repeat(found.logits["realised/realised"], times * (found.drawn_fold == k))
        parts.append(brute(real, drawn))
    assert got == pytest.approx(np.mean(parts))


def test_resamples_without_pictures_of_a_part_are_left_out():
    rng = np.random.default_rng(0)
    names = ("synthetic/synthetic", "synthetic/realised", "synthetic/real", "realised/realised", "realised/real")
    features = {name: rng.normal(size=(4, 16)) for name in ("synthetic", "realised", "real")}
    folds = np.array([0, 0, 1, 1])
    found = Judged({name: rng.normal(size=4) for name in names}, features, folds, folds[::-1])
    statistics = domain_statistics(found, np.arange(4))
    for name, values in bootstrap_draws(statistics, samples=4, resamples=200).items():
        # Both samples of one part are missed by four draws with a chance of 2 / 2 ** 4.
        assert 0.05 < np.isnan(values).mean() < 0.25, name
        assert np.isfinite(interval_of(values)).all(), name


def test_judges_see_that_realised_pictures_are_nearer():
    rng = np.random.default_rng(0)

    def pictures(noise):
        return (rng.uniform(80, 200, (60, 3, 1, 1)) + noise * rng.normal(size=(60, 3, 20, 20))).clip(0, 255)

    crops = {"synthetic": pictures(0), "realised": pictures(9), "real": pictures(10)}
    crops = {name: values.astype(np.uint8) for name, values in crops.items()}
    groups = [str(number // 2) for number in range(60)]
    found = judge_domains(crops, groups, JudgeSettings(steps=40, width=4, batch_size=16), torch.device("cpu"))
    assert len(set(zip(groups, found.real_fold.tolist(), strict=True))) == 30
    value = {name: value_of(statistic, 60) for name, statistic in domain_statistics(found, np.arange(60)).items()}
    assert value["domain_auc/synthetic"] > 0.9
    assert value["domain_auc/realised"] < 0.8
    assert value["domain_auc_drop"] > 0.1
    assert value["feature_distance/realised"] < value["feature_distance/synthetic"]


def test_no_judge_has_seen_what_it_judges(monkeypatch):
    trained: dict[int, set[int]] = {}

    class Judge:
        pass

    def train(positive, negative, settings, device):
        judge = Judge()
        trained[id(judge)] = {int(crop[0, 0, 0]) for crop in (*positive, *negative)}
        kept.append(judge)
        return judge

    def describe(judge, crops, device):
        asked = {int(crop[0, 0, 0]) for crop in crops}
        assert asked
        assert not asked & trained[id(judge)]
        return np.zeros(len(crops)), np.zeros((len(crops), 16))

    kept: list[Judge] = []
    monkeypatch.setattr("callbacks.metrics.domain_statistics.train_judge", train)
    monkeypatch.setattr("callbacks.metrics.domain_statistics.describe", describe)
    # The first value names the photo, or the drawing, that both its untouched and its realised picture show.
    drawn = np.arange(24, dtype=np.uint8)
    real = 100 + np.arange(24, dtype=np.uint8) // 2
    crops = {"synthetic": drawn, "realised": drawn, "real": real}
    crops = {name: np.broadcast_to(values[:, None, None, None], (24, 3, 16, 16)) for name, values in crops.items()}
    settings = JudgeSettings(width=4, folds=3)
    found = judge_domains(crops, [str(value) for value in real], settings, torch.device("cpu"))
    assert len(kept) == 6
    assert np.bincount(found.drawn_fold).tolist() == [8, 8, 8]
