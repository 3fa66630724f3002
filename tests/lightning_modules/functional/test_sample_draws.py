import numpy as np
import pytest
import scipy.stats
import torch

from lightning_modules.functional.sample_draws import SampleDraws, draws_for


def of(index, seed=1, epoch=2, stream=0):
    return SampleDraws.of_samples(seed, epoch, torch.as_tensor(index), stream)


def test_mixing_is_splitmix64():
    """The generator's published stream: state, plus the step, mixed."""
    state, mask = 1234567, (1 << 64) - 1

    def following(state):
        mixed = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & mask
        return mixed ^ (mixed >> 31)

    expected = [following(state + count * 0x9E3779B97F4A7C15 & mask) >> 11 for count in (1, 2, 3)]
    drawn = SampleDraws(torch.tensor([state])).uniform(shape=(3,))[0]
    assert (drawn * 2**53).long().tolist() == expected


def test_a_sample_draws_the_same_in_any_batch():
    alone, among = of([7]), of([3, 7, 900])
    for shape in ((), (4,), (2, 3)):
        assert torch.equal(alone.uniform(shape=shape)[0], among.uniform(shape=shape)[1])
    weights = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert alone.choice(weights)[0] == among.choice(weights)[1]
    assert torch.equal(alone.fork().noise((3, 4))[0], among.fork().of_rows([1]).noise((3, 4))[0])
    assert torch.equal(alone.uniform()[0], among.uniform()[1])


def test_seed_epoch_index_and_stream_each_count():
    sources = [of([5]), of([5], seed=2), of([5], epoch=3), of([6]), of([5], stream=1)]
    assert len({float(source.uniform()) for source in sources}) == 5


def test_numbers_are_uniform_over_samples_and_over_calls():
    draws = of(torch.arange(3000))
    first, second = draws.uniform(), draws.uniform()
    many = of([0]).uniform(shape=(3000,))[0]
    for values in (first, second, many):
        assert scipy.stats.kstest(values.numpy(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.07
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.07


def test_noise_is_normal():
    noise = of([4]).noise((5000,))[0].numpy()
    assert scipy.stats.kstest(noise, "norm").pvalue > 1e-3
    assert np.isfinite(noise).all()


def test_integers_include_both_ends_evenly():
    drawn = of(torch.arange(6000)).integer(30, 35).numpy()
    counts = np.bincount(drawn)[30:]
    assert len(counts) == 6
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_choices_follow_their_weights():
    drawn = of(torch.arange(6000)).choice({"a": 1, "never": 0, "b": 3})
    assert "never" not in drawn
    assert abs(drawn.count("a") / 6000 - 0.25) < 4 * (0.25 * 0.75 / 6000) ** 0.5


def test_a_generator_gives_keys_and_wrong_counts_are_named():
    first, second = (draws_for(torch.Generator().manual_seed(3), 4) for _ in range(2))
    assert torch.equal(first.uniform(), second.uniform())
    with pytest.raises(ValueError, match="draws are for 4 samples, the batch has 5"):
        draws_for(first, 5)
