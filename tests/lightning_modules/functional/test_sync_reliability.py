"""Limits against brute force, and their promise against fresh draws."""

import json
import math

import numpy as np
import pytest

from lightning_modules.functional.sync_reliability import Reliability, exceeded_by_few, mostly_right_up_to


def fitted(rng, count=400, **changes):
    spread = rng.exponential(0.02, count)
    arguments = {
        "unmarked_score": rng.normal(-2, 1, count),
        "marked_score": rng.normal(2, 1, count),
        "marked_spread": spread,
        "marked_error": np.where(spread > 0.05, 0.2, 0.001),
        "rate": 0.05,
        "tolerance": 0.02,
        "score": "presence",
        "looks": (1, 1),
    }
    return Reliability.fit(**(arguments | changes))


def test_an_unmarked_picture_exceeds_the_limit_as_rarely_as_promised():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        limit = exceeded_by_few(rng.normal(size=59), 0.1)
        shares.append((rng.normal(size=50) > limit).mean())
    assert np.mean(shares) == pytest.approx(6 / 60 - 0, abs=0.006)


@pytest.mark.parametrize(("count", "rate"), [(19, 0.05), (18, 0.05), (99, 0.01), (40, 0.1), (0, 0.5)])
def test_limit_is_the_smallest_score_that_keeps_the_rate(count, rate):
    scores = np.random.default_rng(count).normal(size=count)
    good = [s for s in scores if ((scores >= np.nextafter(s, np.inf)).sum() + 1) / (count + 1) <= rate + 1e-12]
    assert exceeded_by_few(scores, rate) == (min(good) if good else math.inf)


def test_spread_limit_is_the_largest_that_keeps_the_rate():
    rng = np.random.default_rng(1)
    for _ in range(200):
        spread = rng.integers(0, 12, 60) / 10  # many equal ones
        wrong = rng.random(60) < spread / 6
        good = [
            limit
            for limit in np.unique(spread)
            if (wrong[spread <= limit].sum() + 1) / ((spread <= limit).sum() + 1) <= 0.1
        ]
        assert mostly_right_up_to(spread, wrong, 0.1) == (max(good) if good else -math.inf)


def test_states_follow_both_limits():
    reliability = fitted(np.random.default_rng(2))
    assert 0.03 < reliability.reliable_up_to < 0.08
    assert -1 < reliability.absent_up_to < 0.5
    assert reliability.states([3, 3, -5, 3], [0.001, 0.5, 0.001, math.nan]) == [
        "reliable",
        "unreliable",
        "absent",
        "unreliable",
    ]


def test_without_presence_the_spread_tells():
    rng = np.random.default_rng(3)
    spread = rng.exponential(0.02, 400)
    reliability = fitted(rng, unmarked_score=-rng.uniform(0.2, 1, 400), marked_score=-spread, score="spread")
    assert reliability.states([9, 9], [0.001, 0.6]) == ["reliable", "absent"]


def test_too_few_pictures_allow_nothing():
    rng = np.random.default_rng(4)
    assert fitted(rng, unmarked_score=rng.normal(size=18)).states([1e9], [0.0]) == ["absent"]
    hopeless = fitted(rng, marked_error=np.ones(400))
    assert hopeless.states([9], [0.0]) == ["unreliable"]


def test_a_state_survives_json():
    for reliability in (
        fitted(np.random.default_rng(5)),
        fitted(np.random.default_rng(5), unmarked_score=np.zeros(3), marked_error=np.ones(400)),
    ):
        state = json.loads(json.dumps(reliability.state(), allow_nan=False))
        assert Reliability.from_state(state) == reliability


def test_a_rate_outside_of_0_and_1_is_refused():
    with pytest.raises(ValueError, match="`rate` must be between 0 and 1, got 1"):
        fitted(np.random.default_rng(6), rate=1)
