"""Random numbers a sample: the same whatever batch, worker, rank or device the sample is on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea, Flood 2014) as signed integers; products and sums wrap around.
_STEP = -7046029254386353131
_MIXERS = ((30, -4658895280553007687), (27, -7723592293110705685))


class SampleDraws:
    """Numbers drawn for each of B samples from its own key; every call advances all of them alike.

    Counters are hashed, no generator is stepped, so that a batch is drawn in a few operations and no sample's numbers
    depend on its neighbours.

    Args:
        keys: (B,) int64, a sample's own key.
    """

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys.cpu()
        self._used = 0

    @classmethod
    def of_samples(cls, seed: int, epoch: int, index: Tensor, stream: int = 0) -> SampleDraws:
        """Return the draws of samples by their place in the data set (B,).

        Args:
            seed: Of the run.
            epoch: That the samples are drawn in.
            index: Stable positions of the samples in their data set.
            stream: Separates consumers of one sample.
        """
        keys = torch.zeros(len(index), dtype=torch.int64)
        for part in (seed, epoch, index.cpu().long(), stream):
            keys = _mixed(keys * 3 + part + 1)
        return cls(keys)

    @classmethod
    def of_generator(cls, generator: torch.Generator, count: int) -> SampleDraws:
        """Return draws whose keys come from a generator, so that they depend on the place in the batch."""
        keys = torch.randint(2**62, (count,), generator=generator, device=generator.device, dtype=torch.int64)
        return cls(keys)

    def __len__(self) -> int:
        return len(self.keys)

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: Sequence[int] = ()) -> Tensor:
        """Return float64 numbers (B, *shape) from low to high."""
        return low + (high - low) * _unit(self._bits(shape))

    def integer(self, low: int, high: int) -> Tensor:
        """Return int64 numbers (B,) from low to high, both included."""
        return low + (self.uniform() * (high - low + 1)).floor().long().clamp(max=high - low)

    def choice(self, weights: Mapping[str, float]) -> list[str]:
        """Return a name a sample, drawn by weight."""
        bounds = torch.tensor(list(weights.values()), dtype=torch.float64).cumsum(0)
        drawn = torch.bucketize(self.uniform() * bounds[-1], bounds, right=True)
        names = list(weights)
        return [names[position] for position in drawn.tolist()]

    def fork(self) -> SampleDraws:
        """Return draws of their own for the same samples, for numbers that are made later or only for some."""
        return SampleDraws(self._bits(()))

    def of_rows(self, rows: Sequence[int]) -> SampleDraws:
        """Return fresh draws of some of the samples."""
        return SampleDraws(self.keys[list(rows)])

    def noise(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Return normal float32 numbers (B, *shape), made on a device."""
        bits = self._bits(shape, device)
        # 24 bits are exact in float32; half a step off, so that neither 0 nor 1 occurs.
        return (_unit(bits, 24).float() * 2 - 1 + 2.0**-24).erfinv() * math.sqrt(2)

    def _bits(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        count, keys = math.prod(shape), self.keys.to(device)
        counters = torch.arange(self._used + 1, self._used + count + 1, device=device)
        self._used += count
        return _mixed(keys[:, None] + counters * _STEP).reshape(len(keys), *shape)


def draws_for(source: torch.Generator | SampleDraws, count: int) -> SampleDraws:
    """Return the draws of `count` samples from either kind of source.

    Raises:
        ValueError: the source has draws for another number of samples.
    """
    if isinstance(source, torch.Generator):
        return SampleDraws.of_generator(source, count)
    if len(source) != count:
        raise ValueError(f"the draws are for {len(source)} samples, the batch has {count}; make them of its indices")
    return source


def _mixed(values: Tensor) -> Tensor:
    """Return the finaliser of SplitMix64 of int64 numbers."""
    for shift, factor in _MIXERS:
        values = (values ^ _shifted(values, shift)) * factor
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, places: int) -> Tensor:
    """Shift bits to the right and bring zeros in, which int64 alone does not."""
    return (values >> places) & ((1 << (64 - places)) - 1)


def _unit(bits: Tensor, places: int = 53) -> Tensor:
    """Return float64 numbers in [0, 1) of the upper bits."""
    return _shifted(bits, 64 - places).double() * 2.0**-places
