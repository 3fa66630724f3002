"""Training views of copy detection: everything about a view is drawn first, then only what its crop sees is made.

The steps, their order and their distributions are the reference's. What differs is the work: overlays touch the
crop alone, a flip costs nothing beside it, and colours change on the small picture as they do in the reference.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.random import Generator

from datamodules.transforms import copy_operations as operations
from datamodules.transforms.copy_operations import Box, Pixels
from datamodules.transforms.copy_overlays import (
    EmojiOverlay,
    Stamp,
    TextOverlay,
    draw_emoji,
    draw_text,
    emoji_stamp,
    lay,
    text_stamp,
)
from datamodules.transforms.degradations import jpeg_roundtrip

Pipeline = Literal["simclr", "blur", "advanced"]

_JITTER: dict[str, tuple[Callable[[Pixels, float], Pixels], float, float]] = {
    "brightness": (operations.brighten, 0.2, 1.8),
    "contrast": (operations.change_contrast, 0.2, 1.8),
    "saturation": (operations.saturate, 0.2, 1.8),
    "hue": (operations.shift_hue, -0.2, 0.2),
}
_BLURS: dict[Pipeline, tuple[float, float]] = {"simclr": (0.1, 2), "blur": (1, 5), "advanced": (1, 5)}


@dataclass(frozen=True)
class ViewSettings:
    """Which views to make.

    Args:
        pipeline: "simclr", "blur" (stronger blur) or "advanced" (also turns, overlays and JPEG).
        size: side of a view in pixels.
        read_size: shorter side that photos are needed at: a larger JPEG is then decoded at 1/2, 1/4 or 1/8 where that
            is not below it, which makes large photos faster and small crops of them coarser. Full size if left out.
        min_area: least share of the photo that a view shows; the reference's by default.
        jitter: how strong colour changes are, as a share of the reference's.
        blur: least and largest standard deviation of the blur in pixels of the view; the pipeline's by default, which
            is made for views of 224 pixels and hides much of smaller ones.
        legacy_emoji: paste palette emoji as opaque rectangles, as the reference does.
        legacy_text: write no text where all characters drawn would fit, as the reference does.
    """

    pipeline: Pipeline = "blur"
    size: int = 224
    read_size: int | None = None
    min_area: float = 0.08
    jitter: float = 1.0
    blur: tuple[float, float] | None = None
    legacy_emoji: bool = False
    legacy_text: bool = False

    def __post_init__(self) -> None:
        if self.pipeline not in _BLURS:
            raise ValueError(f"`pipeline` must be one of {', '.join(_BLURS)}, got {self.pipeline!r}")
        if not 0 < self.min_area <= 1:
            raise ValueError(f"`min_area` must be in (0, 1], got {self.min_area}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"`jitter` must be in [0, 1], got {self.jitter}")
        if self.size < 1 or (self.read_size or 1) < 1:
            raise ValueError(f"`size` and `read_size` must be at least 1, got {self.size} and {self.read_size}")


@dataclass(frozen=True)
class ViewPlan:
    """What is to be done for one view, in the order of the fields; degrees are counter-clockwise.

    `jitter` holds names of colour changes and their factors in the order to apply.
    """

    box: Box
    flip: bool = False
    turn: int = 0
    text: TextOverlay | None = None
    emoji: EmojiOverlay | None = None
    angle: int | None = None
    jitter: tuple[tuple[str, float], ...] = ()
    grey: bool = False
    blur: float | None = None
    quality: int | None = None


def make_view(photo: Pixels, settings: ViewSettings, rng: Generator) -> Pixels:
    """A view (size, size, 3) of a photo (H, W, 3); the photo is left as it is."""
    return render_view(photo, draw_plan(photo.shape[:2], settings, rng), settings)


def draw_plan(size_hw: tuple[int, int], settings: ViewSettings, rng: Generator) -> ViewPlan:
    """Draw all parameters of a view of a photo of this size."""
    advanced = settings.pipeline == "advanced"

    def happens(probability: float) -> bool:
        return bool(rng.random() < probability)

    return ViewPlan(
        flip=happens(0.5),
        turn=90 * int(rng.integers(1, 4)) if advanced and happens(0.05) else 0,
        text=draw_text(rng) if advanced and happens(0.1) else None,
        emoji=draw_emoji(rng) if advanced and happens(0.2) else None,
        angle=int(rng.integers(360)) if advanced and happens(0.05) else None,
        box=draw_box(size_hw, rng, settings.min_area),
        jitter=_draw_jitter(rng, settings.jitter) if happens(0.8) else (),
        grey=happens(0.2),
        blur=float(rng.uniform(*(settings.blur or _BLURS[settings.pipeline]))) if happens(0.5) else None,
        quality=int(rng.integers(101)) if advanced and happens(0.2) else None,
    )


def draw_box(size_hw: tuple[int, int], rng: Generator, min_area: float = 0.08) -> Box:
    """A crop of `min_area` to 1 of the area and a ratio of 3/4 to 4/3; after ten tries that do not fit, the middle."""
    height, width = size_hw
    for _ in range(10):
        area = height * width * rng.uniform(min_area, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    return (height - h) // 2, (width - w) // 2, h, w


def render_view(photo: Pixels, plan: ViewPlan, settings: ViewSettings) -> Pixels:
    """Make the view that a plan describes."""
    view = operations.resize(_see(photo, plan, settings), (settings.size, settings.size))
    for name, factor in plan.jitter:
        view = _JITTER[name][0](view, factor)
    if plan.grey:
        view = operations.greyscale(view)
    if plan.blur is not None:
        view = operations.gaussian_blur(view, plan.blur)
    return view if plan.quality is None else jpeg_roundtrip(view, plan.quality)


def _draw_jitter(rng: Generator, strength: float) -> tuple[tuple[str, float], ...]:
    names = list(_JITTER)
    return tuple((names[i], _draw_factor(rng, names[i], strength)) for i in rng.permutation(len(names)))


def _draw_factor(rng: Generator, name: str, strength: float) -> float:
    _, low, high = _JITTER[name]
    nothing = (low + high) / 2
    return float(nothing + strength * (rng.uniform(low, high) - nothing))


def _see(photo: Pixels, plan: ViewPlan, settings: ViewSettings) -> Pixels:
    """What the plan's box shows of the photo after flip, turns and overlays."""
    height, width = photo.shape[:2]
    stamps = _stamps((width, height), plan, settings)
    # A turned box can see any part of the picture.
    box = plan.box if plan.angle is None else (0, 0, height, width)
    part = _cut(photo, plan, box)
    if stamps:
        part = part.copy()
    for stamp in stamps:
        lay(part, stamp, left=box[1], top=box[0])
    return part if plan.angle is None else operations.rotate(part, plan.angle, plan.box)


def _cut(photo: Pixels, plan: ViewPlan, box: Box) -> Pixels:
    top, left, height, width = box
    if plan.turn:
        whole = cv2.flip(photo, 1) if plan.flip else photo
        return operations.quarter_turn(np.asarray(whole, np.uint8), plan.turn)[top : top + height, left : left + width]
    if plan.flip:
        left = photo.shape[1] - left - width
    part = photo[top : top + height, left : left + width]
    return np.asarray(cv2.flip(part, 1), np.uint8) if plan.flip else part


def _stamps(size_wh: tuple[int, int], plan: ViewPlan, settings: ViewSettings) -> list[Stamp]:
    text = text_stamp(plan.text, size_wh, settings.legacy_text) if plan.text else None
    emoji = emoji_stamp(plan.emoji, size_wh, settings.legacy_emoji) if plan.emoji else None
    return [stamp for stamp in (text, emoji) if stamp]
