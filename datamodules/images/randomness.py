"""One random generator a sample, so that a sample is the same on any number of workers and ranks."""

import numpy as np


def sample_rng(seed: int, epoch: int, index: int, stream: int = 0) -> np.random.Generator:
    """The same four numbers give the same draws in every process, and other numbers give unrelated ones.

    Args:
        seed: seed of the run.
        epoch: epoch that the sample is drawn in; 0 for frozen sets.
        index: stable position of the sample in its data set.
        stream: separates consumers of one sample, so that a new draw in one does not shift the others.

    Raises:
        ValueError: one of the numbers is negative.
    """
    key = (int(seed), int(epoch), int(index), int(stream))
    if min(key) < 0:
        raise ValueError(f"seed, epoch, index and stream must be 0 or more, got {key}; choose another seed")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
