"""Random changes of pixel values, a batch at once: samples with the same change are computed together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from lightning_modules.functional import value_changes as change
from lightning_modules.functional.jpeg import Engine, jpeg
from lightning_modules.functional.sample_draws import SampleDraws, draws_for
from lightning_modules.syncseal.augmentation.settings import ValueSettings

Apply = Callable[[Tensor, Tensor], Tensor]
"""From images (B, 3, H, W) and a strength of each (B,) to the changed images."""
CHANGES: dict[str, Apply] = {
    "brightness": change.adjust_brightness,
    "contrast": change.adjust_contrast,
    "saturation": change.adjust_saturation,
    "hue": change.adjust_hue,
    "grey": lambda images, _: change.to_grey(images),
    "blur": change.gaussian_blur,
    "webp": change.webp,
}
_WITHOUT_STRENGTH = ("identity", "grey")


class Stage(NamedTuple):
    """One change for each sample: its name or nothing, how strong, and where its noise comes from."""

    names: list[str]
    strengths: list[float]
    noise: SampleDraws


def draw_values(settings: ValueSettings, draws: SampleDraws, only: Tensor | None = None) -> list[Stage]:
    """Return the changes of samples, a stage after the other.

    Args:
        settings: What is drawn.
        draws: Of the samples.
        only: Which samples (B,) are changed; the others draw the same numbers, and get an empty name.
    """
    wanted = [True] * len(draws) if only is None else only.tolist()
    drawing = [name for name in settings.weights if name not in _WITHOUT_STRENGTH]
    stages = []
    for _ in range(settings.stages):
        names = [name if asked else "" for name, asked in zip(draws.choice(settings.weights), wanted, strict=True)]
        # Drawn for every sample and change, used for some: no sample's numbers depend on what its neighbours do.
        parts = [dict(zip(drawing, row, strict=True)) for row in draws.uniform(shape=(len(drawing),)).tolist()]
        strengths = [_strength(name, part[name], settings) if name in part else 0.0
                     for name, part in zip(names, parts, strict=True)]  # fmt: skip
        stages.append(Stage(names, strengths, draws.fork()))
    return stages


def apply_values(
    samples: dict[int, Tensor], rows: Sequence[int], stages: Sequence[Stage], settings: ValueSettings
) -> None:
    """Replace some of the samples (1, 3, H, W), by their rows, by changed ones; those with the same change together."""
    for stage in stages:
        groups: dict[str, list[int]] = {}
        for row in rows:
            groups.setdefault(stage.names[row], []).append(row)
        for name, group in groups.items():
            if name not in ("", "identity"):
                changed = _changed(name, joined(samples, group), stage, group, settings)
                samples.update(zip(group, apart(changed), strict=True))


def joined(samples: Mapping[int, Tensor], rows: Sequence[int]) -> Tensor:
    """Return some of the samples as a batch; a single one is not copied."""
    return samples[rows[0]] if len(rows) == 1 else torch.cat([samples[row] for row in rows])


def apart(images: Tensor) -> Sequence[Tensor]:
    """Return each sample of a batch as a batch of one."""
    return (images,) if images.shape[0] == 1 else torch.split(images, 1)


def names_of(stages: Sequence[Stage], count: int) -> list[str]:
    """Return what is done to each of `count` samples, as `jpeg+blur`."""
    return ["+".join(filter(None, (stage.names[row] for stage in stages))) for row in range(count)]


def attack_values(
    images: Tensor, settings: ValueSettings, generator: torch.Generator | SampleDraws
) -> tuple[Tensor, list[str]]:
    """Return images with changed values, and what was done to each, as `jpeg+blur`.

    Args:
        images: RGB in [0, 1] (B, 3, H, W), on any device.
        settings: What is drawn.
        generator: Draws of the samples, or a generator to take their keys from.
    """
    stages = draw_values(settings, draws_for(generator, len(images)))
    samples = dict(enumerate(apart(images)))
    apply_values(samples, range(len(samples)), stages, settings)
    return joined(samples, range(len(samples))), names_of(stages, len(samples))


def _changed(name: str, images: Tensor, stage: Stage, rows: list[int], settings: ValueSettings) -> Tensor:
    strengths = torch.tensor([stage.strengths[row] for row in rows], dtype=torch.float64)
    if name == "noise":
        return change.add_noise(images, stage.noise.of_rows(rows).noise(images.shape[1:], images.device), strengths)
    if name == "median":
        return _medians(images, strengths)
    if name == "jpeg":
        return jpeg(images, strengths, cast(Engine, settings.jpeg_engine))
    return CHANGES[name](images, strengths)


def _strength(name: str, part: float, settings: ValueSettings) -> float:
    """Return how strong a change is, by a number from 0 to 1."""
    ranges = cast(Mapping[str, tuple[float, float]], vars(settings))
    match name:
        case "noise":
            return _between(settings.noise_levels, part) / 255
        case "jpeg" | "webp":
            return _whole(ranges[f"{name}_quality"], part)
        case "blur" | "median":
            size = _whole(ranges[f"{name}_kernel"], part)
            return size + 1 - size % 2
    return _between(ranges[name], part)


def _between(limits: tuple[float, float], part: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * part


def _whole(limits: tuple[float, float], part: float) -> float:
    low, high = limits
    return low + min(math.floor(part * (high - low + 1)), high - low)


def _medians(images: Tensor, kernel_sizes: Tensor) -> Tensor:
    parts, order = [], []
    for size in sorted(set(kernel_sizes.tolist())):
        rows = (kernel_sizes == size).nonzero()[:, 0]
        parts.append(change.median_filter(images[rows.to(images.device)], int(size)))
        order.append(rows)
    return torch.cat(parts)[torch.cat(order).argsort()]
