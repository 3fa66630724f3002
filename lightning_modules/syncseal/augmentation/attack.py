"""Whole attacks: geometry and values in either order, with the labels that a detector learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_modules.functional.geometry import homography_of_frame, sampled_by
from lightning_modules.functional.sample_draws import SampleDraws, draws_for
from lightning_modules.syncseal.augmentation.geometric import draw_geometry
from lightning_modules.syncseal.augmentation.parts import in_parts
from lightning_modules.syncseal.augmentation.settings import GeometricSettings, ValueSettings
from lightning_modules.syncseal.augmentation.values import apart, apply_values, draw_values, joined, names_of


class Attacked(NamedTuple):
    """Attacked images (B, 3, H, W), where their corners were (B, 4, 2) in pixels, and what was done to each."""

    images: Tensor
    quads_px: Tensor
    geometry: list[str]
    values: list[str]


def attack(
    images: Tensor,
    geometric: GeometricSettings,
    values: ValueSettings,
    generator: torch.Generator | SampleDraws,
    compat: bool = False,
) -> Attacked:
    """Return images changed and moved at random, each by its own parameters; the gradient passes.

    Args:
        images: RGB in [0, 1] (B, 3, H, W), on any device.
        geometric: How they are moved.
        values: How their values change.
        generator: Draws of the samples, so that they do not depend on their batch; or a generator to take keys from.
        compat: Sample in the published half-pixel convention.
    """
    count, _, height, width = images.shape
    draws = draws_for(generator, count)
    quads, geometry = draw_geometry(count, height, width, geometric, draws)
    after = draws.uniform() < values.after_geometry
    before_warp, after_warp = draw_values(values, draws, ~after), draw_values(values, draws, after)
    outside = _draw_outside(geometric, draws, images.shape[1])
    homography = homography_of_frame(quads, height, width).to(images.device)

    def change(part: Tensor, rows: range) -> Tensor:
        samples = dict(zip(rows, apart(part), strict=True))
        apply_values(samples, rows, before_warp, values)
        fill, reflect = outside.of_rows(rows, images.shape[1:], images.device)
        moves = homography[rows.start : rows.stop]
        moved = sampled_by(joined(samples, rows), moves, fill, reflect, compat=compat)
        samples = dict(zip(rows, apart(moved), strict=True))
        apply_values(samples, rows, after_warp, values)
        return joined(samples, rows)

    # Half precision would lose what the changes are about.
    with torch.autocast(images.device.type, enabled=False):
        attacked = in_parts(change, images.float()).to(images.dtype)
    pairs = zip(names_of(before_warp, count), names_of(after_warp, count), strict=True)
    return Attacked(attacked, quads.to(attacked), geometry, [first or second for first, second in pairs])


class _Outside(NamedTuple):
    """What lies outside each picture: a kind, a colour (B, C, 1, 1), and where its noise comes from."""

    kinds: list[str]
    colours: Tensor
    noise: SampleDraws

    def of_rows(self, rows: range, shape: Sequence[int], device: torch.device) -> tuple[Tensor | float, Tensor | None]:
        """Return the fill of some samples and which of them are mirrored, as `warp` takes them."""
        kinds = [self.kinds[row] for row in rows]
        if set(kinds) == {"black"}:
            return 0.0, None
        noisy = [place for place, kind in enumerate(kinds) if kind == "noise"]
        fill = self.colours[rows.start : rows.stop].to(device)
        if noisy:
            noise = self.noise.of_rows([rows[place] for place in noisy]).noise(shape, device)
            fill = fill.repeat(1, 1, *shape[1:])
            fill[noisy] = (noise / 4 + 0.5).clamp(0, 1)
        return fill, torch.tensor([kind == "reflect" for kind in kinds], device=device)


def _draw_outside(settings: GeometricSettings, draws: SampleDraws, channels: int) -> _Outside:
    kinds = draws.choice(settings.fills)
    colours = draws.uniform(shape=(channels, 1, 1)).float()
    black = torch.tensor([kind == "black" for kind in kinds])
    return _Outside(kinds, torch.where(black[:, None, None, None], 0.0, colours), draws.fork())
