"""Random geometry: one quad a sample, drawn in stages."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_modules.functional.geometry import frame_corners_px
from lightning_modules.functional.sample_draws import SampleDraws, draws_for
from lightning_modules.syncseal.augmentation import quads as change
from lightning_modules.syncseal.augmentation.settings import GeometricSettings

Move = Callable[[Tensor, SampleDraws, GeometricSettings], Tensor]


def draw_geometry(
    count: int, height: int, width: int, settings: GeometricSettings, generator: torch.Generator | SampleDraws
) -> tuple[Tensor, list[str]]:
    """Return quads (B, 4, 2) in pixels of the original, float64 on the CPU, and each one's name, as `crop+rotate`.

    Args:
        count: Number of samples.
        height: Of the pictures.
        width: Of the pictures.
        settings: What is drawn.
        generator: Draws of the samples, or a generator to take their keys from.
    """
    draws = draws_for(generator, count)
    quads = frame_corners_px(height, width).repeat(count, 1, 1)
    chosen: list[list[str]] = []
    for stage in range(settings.stages):
        weights = settings.weights_of_stage(stage)
        chosen.append(draws.choice(weights))
        moved = quads
        for name in weights:
            # Drawn for every sample, used for some: no sample's numbers depend on what its neighbours do.
            candidates = MOVES[name](quads, draws, settings)
            taken = torch.tensor([name == other for other in chosen[-1]])
            moved = torch.where(taken[:, None, None], candidates, moved)
        quads = moved
    return quads, ["+".join(names) for names in zip(*chosen, strict=True)]


def _identity(quads: Tensor, draws: SampleDraws, settings: GeometricSettings) -> Tensor:
    return quads


def _hflip(quads: Tensor, draws: SampleDraws, settings: GeometricSettings) -> Tensor:
    return change.flipped(quads, 0)


def _vflip(quads: Tensor, draws: SampleDraws, settings: GeometricSettings) -> Tensor:
    return change.flipped(quads, 1)


def _crop(quads: Tensor, draws: SampleDraws, settings: GeometricSettings) -> Tensor:
    area = draws.uniform(*settings.crop_area)
    aspects = draws.uniform(0.5, 2.0, (change.CROP_TRIES,))
    return change.cropped(quads, area, aspects, draws.uniform(shape=(change.CROP_TRIES + 1, 2)))


def _rotate(quads: Tensor, draws: SampleDraws, settings: GeometricSettings) -> Tensor:
    quarters = draws.integer(-1, 1) * settings.quarter_turns
    return change.rotated(quads, quarters, draws.uniform(-settings.max_angle_deg, settings.max_angle_deg))


def _rotate_180(quads: Tensor, draws: SampleDraws, settings: GeometricSettings) -> Tensor:
    return quads.roll(2, 1)


def _rotate_inner(quads: Tensor, draws: SampleDraws, settings: GeometricSettings) -> Tensor:
    return change.rotated_inside(quads, draws.uniform(-settings.max_angle_deg, settings.max_angle_deg))


def _perspective(quads: Tensor, draws: SampleDraws, settings: GeometricSettings) -> Tensor:
    shares = settings.max_distortion * draws.uniform(-1.0, 1.0, (4, 2))
    moved = change.distorted(quads, shares)
    return change.convex(moved, quads) if settings.keep_convex else moved


def _stretch(quads: Tensor, draws: SampleDraws, settings: GeometricSettings) -> Tensor:
    across, down = draws.uniform(*settings.stretch), draws.uniform(*settings.stretch)
    return change.reframed(quads, (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2)


def _pad(quads: Tensor, draws: SampleDraws, settings: GeometricSettings) -> Tensor:
    left, top, right, bottom = draws.uniform(0.0, settings.max_padding, (4,)).unbind(1)
    return change.reframed(quads, -left, -top, 1 + right, 1 + bottom)


def _translate(quads: Tensor, draws: SampleDraws, settings: GeometricSettings) -> Tensor:
    across, down = draws.uniform(-settings.max_translation, settings.max_translation, (2,)).unbind(1)
    return change.reframed(quads, across, down, 1 + across, 1 + down)


MOVES: dict[str, Move] = {
    "identity": _identity,
    "crop": _crop,
    "hflip": _hflip,
    "rotate": _rotate,
    "perspective": _perspective,
    "vflip": _vflip,
    "rotate_180": _rotate_180,
    "rotate_inner": _rotate_inner,
    "stretch": _stretch,
    "pad": _pad,
    "translate": _translate,
}
