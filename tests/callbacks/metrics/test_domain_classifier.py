"""Judges learn what two domains differ in, and leave no trace in the run."""

import numpy as np
import pytest
import torch

from callbacks.metrics.domain_classifier import JudgeSettings, describe, folds_of, train_judge
from lightning_modules.functional.detection import Ranking

CPU = torch.device("cpu")
QUICK = JudgeSettings(steps=40, width=4, batch_size=16)


def pictures(count, noise, seed):
    rng = np.random.default_rng(seed)
    tone = rng.uniform(80, 220, (count, 3, 1, 1))
    return (tone + noise * rng.normal(size=(count, 3, 20, 20))).clip(0, 255).astype(np.uint8)


def test_a_judge_tells_new_pictures_of_two_domains():
    judge = train_judge(pictures(60, 12, 0), pictures(60, 0, 1), QUICK, CPU)
    rough, smooth = describe(judge, pictures(40, 12, 2), CPU), describe(judge, pictures(40, 0, 3), CPU)
    scores = np.concatenate([rough[0], smooth[0]])
    assert Ranking.of(scores, np.arange(80) < 40).curve().auroc()[0] > 0.9
    assert rough[1].shape == (40, 16)


def test_a_judge_is_chance_on_one_domain():
    judge = train_judge(pictures(60, 5, 0), pictures(60, 5, 1), QUICK, CPU)
    scores = np.concatenate([describe(judge, pictures(150, 5, seed), CPU)[0] for seed in (2, 3)])
    assert Ranking.of(scores, np.arange(300) < 150).curve().auroc()[0] == pytest.approx(0.5, abs=0.12)


def test_training_is_repeatable_and_leaves_the_random_stream_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    with torch.inference_mode():  # as callbacks run
        first = train_judge(pictures(20, 9, 0), pictures(20, 0, 1), JudgeSettings(steps=3, width=4), CPU)
    assert torch.equal(torch.rand(3), wanted)
    again = train_judge(pictures(20, 9, 0), pictures(20, 0, 1), JudgeSettings(steps=3, width=4), CPU)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_groups_stay_together_in_parts_of_one_size():
    groups = [f"photo{number // 3}" for number in range(60)]
    found = folds_of(groups, 4, seed=1)
    for name in set(groups):
        assert len({part for part, group in zip(found.tolist(), groups, strict=True) if group == name}) == 1
    assert np.bincount(found).tolist() == [15] * 4
    assert not np.array_equal(found, folds_of(groups, 4, seed=2))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: JudgeSettings(folds=1), "`folds` of JudgeSettings must be at least 2"),
        (lambda: folds_of(["a", "a"], 2), "1 different pictures cannot be dealt to 2 parts"),
        (
            lambda: train_judge(np.zeros((2, 3, 8, 8), np.uint8), np.zeros((2, 3, 8, 8), np.uint8), QUICK, CPU),
            "of 16 px and more",
        ),
    ],
)
def test_what_cannot_be_judged_is_said(make, told):
    with pytest.raises(ValueError, match=told):
        make()
