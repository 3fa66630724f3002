import itertools

import pytest

from lightning_modules.syncseal.schedules import ScalingSchedule, discriminator_factor


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_strength_falls_from_start_to_end_and_stays(shape):
    schedule = ScalingSchedule(1.0, 0.2, epochs=10, start_epoch=5, shape=shape)
    values = [schedule.at(epoch) for epoch in range(30)]
    assert values[:6] == [1.0] * 6
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(values))
    assert values[10] == pytest.approx(0.6), "half of the way in half of the time"
    assert values[15:] == pytest.approx([0.2] * 15)


def test_a_constant_strength_needs_nothing_else():
    assert {ScalingSchedule(0.3).at(epoch) for epoch in (0, 7, 1000)} == {0.3}


def test_the_discriminator_starts_at_its_epoch():
    assert [discriminator_factor(epoch, 2) for epoch in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"shape": "step"}, "must be constant, linear or cosine"), ({"shape": "linear"}, "`scaling_epochs` must be")],
)
def test_mistakes_are_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        ScalingSchedule(1.0, **arguments)
