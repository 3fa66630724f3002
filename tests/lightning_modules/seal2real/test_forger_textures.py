"""Tone, fading, softness, tint and grain do what they are called, and no map can draw."""

import numpy as np
import pytest
import torch

from lightning_modules.seal2real.forger_textures import (
    FADE,
    GRAIN,
    GRAIN_START,
    SHARES,
    TINT,
    TINT_START,
    TONE,
    map_count,
    smoothed,
    textured,
)

FINE = 2
PLACES = {"tone": 0, "fade": 1, "softness": 2, "tint": 3}
MUCH = 20.0  # of a noise that makes its share 1


def picture(seed=0):
    return 0.2 + 0.6 * torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(seed))


def maps_of(**values):
    """Maps of which all but the named ones leave the picture as it is."""
    maps = torch.zeros(2, map_count(FINE + SHARES), 24, 32)
    maps[:, PLACES["tint"]] = -float(np.arctanh(TINT_START))
    maps[:, 4:] = -float(np.arctanh(GRAIN_START))
    for name, value in values.items():
        maps[:, PLACES[name]] = value
    return maps


def noise_of(light=MUCH, press=MUCH, rough=MUCH):
    fine = torch.randn(2, FINE, 24, 32, generator=torch.Generator().manual_seed(1))
    coarse = torch.tensor([light, press, rough]).view(1, 3, 1, 1).expand(2, 3, 24, 32)
    return torch.cat([fine, coarse], 1)


def test_empty_maps_change_nothing():
    torch.testing.assert_close(textured(picture(), maps_of(), noise_of()), picture())


@pytest.mark.parametrize("asked", [-0.4, 0.7])
def test_tone_and_fading_are_optical_density(asked):
    image, share = picture(), float(np.tanh(asked))
    toned = textured(image, maps_of(tone=asked), noise_of())
    torch.testing.assert_close(-toned.log(), -image.log() + TONE * share)
    faded = textured(image, maps_of(fade=asked), noise_of())
    torch.testing.assert_close(-faded.log(), -image.log() * (1 + FADE * share))


def test_each_picture_gets_its_own_share():
    image, maps = picture(), maps_of(tone=1.0)
    none, half, whole = (textured(image, maps, noise_of(light=light)) for light in (-MUCH, 0.0, MUCH))
    torch.testing.assert_close(none, image)
    torch.testing.assert_close(half.log() - image.log(), (whole.log() - image.log()) / 2)


def test_softness_blurs_or_sharpens():
    image = picture()
    soft, sharp = (textured(image, maps_of(softness=asked), noise_of()) for asked in (0.8, -0.8))
    assert soft.std() < image.std() < sharp.std()
    torch.testing.assert_close(soft.mean(), image.mean(), rtol=0, atol=0.01)


def test_tint_moves_red_against_blue():
    image = picture()
    tinted = textured(image, maps_of(tint=0.0), noise_of(rough=0.5)).log() - image.log()
    expected = 0.5 * TINT * TINT_START
    for channel, wanted in enumerate((expected, 0.0, -expected)):
        torch.testing.assert_close(tinted[:, channel], torch.full((2, 24, 32), wanted))


def test_grain_follows_its_own_noise_and_map():
    image, noise, maps = picture(), noise_of(), maps_of()
    maps[:, 5] = 1.0
    added = textured(image, maps, noise).log() - image.log()
    wanted = GRAIN * (np.tanh(1.0) + GRAIN_START) * noise[:, 1:2]
    torch.testing.assert_close(added, wanted.expand_as(added), rtol=1e-4, atol=1e-5)


def test_a_map_that_alternates_between_pixels_draws_nothing():
    image, maps = picture(), maps_of()
    maps[:, PLACES["tone"]] = 3.0 * torch.where(torch.arange(32) % 2 == 0, 1.0, -1.0)
    change = (textured(image, maps, noise_of()) - image).abs()[..., 9:-9]
    even = (textured(image, maps_of(tone=3.0), noise_of()) - image).abs()[..., 9:-9]
    assert change.mean() < 0.1 * even.mean()


def test_smoothing_keeps_even_planes_to_the_border():
    plane = torch.full((1, 2, 19, 19), 0.3)
    torch.testing.assert_close(smoothed(plane, 9), plane)


def test_too_few_noises_are_refused():
    with pytest.raises(ValueError, match="noise_scales"):
        map_count(SHARES)
