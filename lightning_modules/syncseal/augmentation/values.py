"""Random changes of pixel values, a batch at once: samples with the same change are computed together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from lightning_modules.functional import value_changes as change
from lightning_modules.functional.jpeg import Engine, jpeg
from lightning_modules.syncseal.augmentation.draws import SampleDraws, draws_for
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


class Stage(NamedTuple):
    """One change for each sample: its name or nothing, how strong (B,), and where its noise comes from."""

    names: list[str]
    strengths: Tensor
    noise: SampleDraws


def draw_values(settings: ValueSettings, draws: SampleDraws, only: Tensor | None = None) -> list[Stage]:
    """Return the changes of samples, a stage after the other.

    Args:
        settings: What is drawn.
        draws: Of the samples.
        only: Which samples (B,) are changed; the others draw the same numbers, and get an empty name.
    """
    wanted = [True] * len(draws) if only is None else only.tolist()
    stages = []
    for _ in range(settings.stages):
        names = [name if asked else "" for name, asked in zip(draws.choice(settings.weights), wanted, strict=True)]
        strengths = torch.zeros(len(draws), dtype=torch.float64)
        for name in settings.weights:
            # Drawn for every sample, used for some: no sample's numbers depend on what its neighbours do.
            taken = torch.tensor([name == other for other in names])
            strengths = torch.where(taken, _strengths(name, settings, draws).double(), strengths)
        stages.append(Stage(names, strengths, draws.fork()))
    return stages


def apply_values(samples: list[Tensor], rows: Sequence[int], stages: Sequence[Stage], settings: ValueSettings) -> None:
    """Replace some of the samples (3, H, W) by changed ones, those with the same change together."""
    for stage in stages:
        groups: dict[str, list[int]] = {}
        for row in rows:
            groups.setdefault(stage.names[row], []).append(row)
        for name, group in groups.items():
            if name not in ("", "identity"):
                changed = _changed(name, stacked(samples, group), stage, group, settings)
                for row, sample in zip(group, changed, strict=True):
                    samples[row] = sample


def stacked(samples: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """Return some of the samples as a batch; a single one is not copied."""
    return samples[rows[0]][None] if len(rows) == 1 else torch.stack([samples[row] for row in rows])


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
    samples = list(images)
    apply_values(samples, range(len(samples)), stages, settings)
    return torch.stack(samples), names_of(stages, len(samples))


def _changed(name: str, images: Tensor, stage: Stage, rows: list[int], settings: ValueSettings) -> Tensor:
    strengths = stage.strengths[rows]
    if name == "noise":
        return change.add_noise(images, stage.noise.of_rows(rows).noise(images.shape[1:], images.device), strengths)
    if name == "median":
        return _medians(images, strengths)
    if name == "jpeg":
        return jpeg(images, strengths, cast(Engine, settings.jpeg_engine))
    return CHANGES[name](images, strengths)


def _strengths(name: str, settings: ValueSettings, draws: SampleDraws) -> Tensor:
    """Return a strength for every sample, (B,)."""
    match name:
        case "identity" | "grey":
            return torch.zeros(len(draws))
        case "noise":
            return draws.uniform(*settings.noise_levels) / 255
        case "jpeg":
            return draws.integer(*settings.jpeg_quality)
        case "webp":
            return draws.integer(*settings.webp_quality)
        case "blur":
            return _odd(draws.integer(*settings.blur_kernel))
        case "median":
            return _odd(draws.integer(*settings.median_kernel))
    return draws.uniform(*cast(Mapping[str, tuple[float, float]], vars(settings))[name])


def _odd(sizes: Tensor) -> Tensor:
    return sizes + 1 - sizes % 2


def _medians(images: Tensor, kernel_sizes: Tensor) -> Tensor:
    parts, order = [], []
    for size in sorted(set(kernel_sizes.tolist())):
        rows = (kernel_sizes == size).nonzero()[:, 0]
        parts.append(change.median_filter(images[rows.to(images.device)], int(size)))
        order.append(rows)
    return torch.cat(parts)[torch.cat(order).argsort()]
