"""Sample generators: equal for equal keys in any process, unrelated otherwise."""

import itertools
import multiprocessing

import numpy as np
import pytest

from datamodules.images.randomness import sample_rng


def _first_draws(key):
    return sample_rng(*key).integers(0, 2**63, 4).tolist()


def test_is_the_documented_stream():
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence((7, 2, 123, 0))))
    assert sample_rng(7, 2, 123).integers(0, 2**63, 8).tolist() == expected.integers(0, 2**63, 8).tolist()


def test_every_key_has_its_own_stream():
    keys = list(itertools.product(range(3), range(3), range(5), range(2)))
    assert len({tuple(_first_draws(key)) for key in keys}) == len(keys)


def test_spawned_process_draws_the_same_as_this_one():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.apply(sample_rng, (3, 1, 9, 1))
    assert elsewhere.integers(0, 2**63, 4).tolist() == _first_draws((3, 1, 9, 1))


def test_numpy_integers_count_as_integers():
    assert _first_draws(np.array([1, 2, 3, 4])) == _first_draws((1, 2, 3, 4))


def test_negative_number_is_refused_by_one_line():
    with pytest.raises(ValueError, match=r"0 or more, got \(-1, 0, 0, 0\)"):
        sample_rng(-1, 0, 0)
