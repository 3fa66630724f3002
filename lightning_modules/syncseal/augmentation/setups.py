"""The published evaluation's 21 moves and 21 changes of values, by name, and fixed attacks made of such names.

A name is a kind and a strength: `rotate_20`, `crop_0.6`, `JPEG_60`. Moves without strength need none: `hflip`,
`rotate_180`. `rotate_20+JPEG_60` does both, the move first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_modules.functional import value_changes as change
from lightning_modules.functional.geometry import frame_corners_px, warp
from lightning_modules.functional.jpeg import jpeg
from lightning_modules.functional.sample_draws import SampleDraws, draws_for
from lightning_modules.syncseal.augmentation import quads as moved
from lightning_modules.syncseal.augmentation.attack import Attacked
from lightning_modules.syncseal.augmentation.geometric import MOVES
from lightning_modules.syncseal.augmentation.settings import GeometricSettings


class Setup(NamedTuple):
    """A name as the published tables print it, and the strength column beside it."""

    name: str
    strength: str


GEOMETRIC_SETUPS = (
    Setup("identity_0", "0.0"),
    Setup("hflip_0", "0.0"),
    *(Setup(f"rotate_{angle}", f"{angle}.0") for angle in (5, 10, 20, 30, 45, 90)),
    *(Setup(f"crop_{area}", f"{area}") for area in (0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)),
    *(Setup(f"perspective_{scale}", f"{scale}") for scale in (0.1, 0.2, 0.3, 0.4, 0.5)),
)
VALUE_SETUPS = (
    Setup("Identity_0", "0"),
    *(Setup(f"Brightness_{factor}", f"{factor}") for factor in (0.5, 1.5, 2.0)),
    *(Setup(f"Contrast_{factor}", f"{factor}") for factor in (0.5, 1.5, 2.0)),
    *(Setup(f"Hue_{turn}", f"{turn}") for turn in (-0.2, -0.1, 0.1, 0.2)),
    Setup("Grayscale_-1", "-1"),
    *(Setup(f"JPEG_{quality}", f"{quality}") for quality in (20, 40, 60, 80)),
    *(Setup(f"GaussianBlur_{size}", f"{size}") for size in (3, 9, 17)),
    *(Setup(f"(JPEG_Brightness)_({quality}_2.0)", f"({quality}_2.0)") for quality in (40, 80)),
)
FIXED_MOVES = ("identity", "hflip", "vflip", "rotate_180")
MOVES_WITH_STRENGTH = ("rotate", "rotate_inner", "crop", "perspective")
CHANGES = ("Identity", "Brightness", "Contrast", "Saturation", "Hue", "Grayscale", "JPEG", "GaussianBlur",
           "MedianFilter", "WebP")  # fmt: skip


def named_quads(name: str, count: int, height: int, width: int, generator: torch.Generator | SampleDraws) -> Tensor:
    """Return the quads (B, 4, 2) of a move by its name, float64; crops and perspectives are drawn at random.

    Raises:
        ValueError: there is no such move.
    """
    draws = draws_for(generator, count)
    quads = frame_corners_px(height, width).repeat(count, 1, 1)
    if name.removesuffix("_0") in FIXED_MOVES:
        return MOVES[name.removesuffix("_0")](quads, draws, GeometricSettings())
    kind, strength = _parsed(name, MOVES_WITH_STRENGTH)
    if kind == "rotate":
        quarters = round(strength / 90) if 45 < abs(strength) < 135 else 0
        rest = torch.full((count,), strength - 90 * quarters)
        return moved.rotated(quads, torch.full((count,), quarters), rest)
    if kind == "rotate_inner":
        return moved.rotated_inside(quads, torch.full((count,), strength))
    if kind == "crop":
        return MOVES["crop"](quads, draws, GeometricSettings(crop_area=(strength, strength)))
    return MOVES["perspective"](quads, draws, GeometricSettings(max_distortion=strength))


def named_values(images: Tensor, name: str) -> Tensor:
    """Return images (B, 3, H, W) changed as a name says, the same for all; JPEG is libjpeg's on any device.

    Raises:
        ValueError: there is no such change.
    """
    if name.startswith("("):
        kinds, strengths = (part.strip("()").split("_") for part in name.split(")_(", 1))
        for pair in zip(kinds, strengths, strict=True):
            images = named_values(images, "_".join(pair))
        return images
    kind, strength = _parsed(name, CHANGES)
    each = torch.full((len(images),), strength)
    match kind:
        case "Brightness":
            return change.adjust_brightness(images, each)
        case "Contrast":
            return change.adjust_contrast(images, each)
        case "Saturation":
            return change.adjust_saturation(images, each)
        case "Hue":
            return change.adjust_hue(images, each)
        case "Grayscale":
            return change.to_grey(images)
        case "JPEG":
            return jpeg(images, each, "codec")
        case "GaussianBlur":
            return change.gaussian_blur(images, each)
        case "MedianFilter":
            return change.median_filter(images, int(strength))
        case "WebP":
            return change.webp(images, each)
    return images


def named_attack(images: Tensor, name: str, generator: torch.Generator | SampleDraws, compat: bool = False) -> Attacked:
    """Return images moved, and then changed if the name says so, as in the published evaluation.

    Args:
        images: RGB in [0, 1] (B, 3, H, W).
        name: As `rotate_20`, `JPEG_60` or `rotate_20+JPEG_60`.
        generator: For the moves that are drawn.
        compat: Sample in the published half-pixel convention.
    """
    move, _, values = name.partition("+")
    if move.split("_")[0].strip("()") in CHANGES:
        move, values = "identity", name
    quads = named_quads(move, len(images), images.shape[-2], images.shape[-1], generator)
    attacked = images if move.startswith("identity") else warp(images, quads.to(images.device), compat=compat)
    attacked = named_values(attacked, values) if values else attacked
    return Attacked(attacked, quads.to(images), [move] * len(images), [values] * len(images))


def _parsed(name: str, known: tuple[str, ...]) -> tuple[str, float]:
    kind, _, strength = name.rpartition("_")
    try:
        if kind in known:
            return kind, float(strength)
    except ValueError:
        pass
    moves, changes = ", ".join(FIXED_MOVES + MOVES_WITH_STRENGTH), ", ".join(CHANGES)
    raise ValueError(f"no attack {name!r}: write a kind and a strength, as rotate_20, of {moves}, {changes}")
