"""The default compositing engine: marks laid over a photo, with labels that follow the ink one can see.

Differs from the reference procedure (`watermark_reference`) where that one is slow or wrong: a mark is warped once
instead of rotated and resized at full size, a pixel is positive only where there is ink *and* a visible change, what
is neither (edges, invisible ink) is ignored instead of learnt, and clean pictures and pictures with signs of their
own are part of the data.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.transforms.degradations import degrade
from lightning_modules.functional.compositing import BLEND_MODES, composite

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
FAMILIES = ("logo", "text", "tiled", "corner", "diagonal")


class Marks(Protocol):
    """Where marks come from."""

    def draw(self, rng: np.random.Generator, extent: float, kind: str) -> Pixels:
        """Return a mark of `kind` "logo" or "text" as premultiplied RGBA, its diagonal near or above `extent`."""


@dataclass(frozen=True)
class CompositingSettings:
    """What is laid over a photo, and what counts as a mark.

    Attributes:
        clean_fraction: Share of samples without any mark.
        sign_fraction: Share of samples whose scene carries a sign or print of its own, which is not a mark.
        photo_blur: Range of the blur that photos get before marks come over them, as a standard deviation in px. A
            camera's picture is soft at full size and what is laid over it is not; drawn scenes are as crisp as marks.
        families: Weights of the layouts; a sample has one.
        most: Most marks of a family in one sample, 1 where it is not named; 1 to 5 logos are the reference's.
        modes: Weights of the blend modes.
        extent: Range of a mark's diagonal as a fraction of the image's diagonal.
        shortest_px: Least length of a mark's shorter side: thinner, in small samples, nothing could be told apart.
        opacity: Range of the opacity.
        rotated_fraction: Share of free marks that are rotated.
        ink_threshold: Ink above this share of the mark's strongest alpha can be a label.
        visible_change: Sum over RGB of the change, in levels of 255, from which a pixel is a label. CLWD uses 15; the
            compression and noise that follow here hide as much and more.
        visible_share: Share of a mark's ink that must change visibly, else it is drawn again.
        ignore_px: Width of the band around labels that counts neither way.
        degraded_fraction: Share of samples that are compressed, resized, blurred or made noisy afterwards.
    """

    clean_fraction: float = 0.2
    sign_fraction: float = 0.12
    photo_blur: tuple[float, float] = (0.0, 0.0)
    families: Mapping[str, float] = field(
        default_factory=lambda: {"logo": 0.46, "text": 0.2, "tiled": 0.12, "corner": 0.1, "diagonal": 0.12}
    )
    most: Mapping[str, int] = field(default_factory=lambda: {"logo": 5, "text": 3, "corner": 2})
    modes: Mapping[str, float] = field(
        default_factory=lambda: {
            "normal": 0.62, "multiply": 0.08, "overlay": 0.08, "screen": 0.1, "soft_light": 0.03,
            "hard_light": 0.03, "add": 0.03, "difference": 0.01, "luminosity": 0.02,
        }
    )  # fmt: skip
    extent: tuple[float, float] = (0.12, 0.7)
    shortest_px: int = 12
    opacity: tuple[float, float] = (0.3, 1.0)
    rotated_fraction: float = 0.5
    ink_threshold: float = 0.35
    visible_change: int = 45
    visible_share: float = 0.6
    ignore_px: int = 1
    degraded_fraction: float = 0.5

    def __post_init__(self) -> None:
        _check_weights("families", self.families, FAMILIES)
        _check_weights("modes", self.modes, BLEND_MODES)
        if unknown := set(self.most) - set(FAMILIES):
            raise ValueError(f"settings.most names {sorted(unknown)}; families are {', '.join(FAMILIES)}")
        for name in ("photo_blur", "extent", "opacity"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"settings.{name} must be two ascending numbers from 0 on, got {[low, high]}")
        for name in ("clean_fraction", "sign_fraction", "rotated_fraction", "visible_share", "degraded_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"settings.{name} must lie in [0, 1], got {getattr(self, name)}")


def _check_weights(name: str, weights: Mapping[str, float], known: Collection[str]) -> None:
    if unknown := set(weights) - set(known):
        raise ValueError(f"settings.{name} names {sorted(unknown)}; known are {', '.join(known)}")
    if min(weights.values(), default=0) < 0 or not sum(weights.values()) > 0:
        raise ValueError(f"settings.{name} needs weights from 0 on with a positive sum, got {dict(weights)}")


@dataclass(frozen=True)
class Layer:
    """A mark in its place: straight colour and ink (alpha before opacity) over a rectangle of the canvas."""

    top: int
    left: int
    color: Floats
    ink: Floats

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas that the layer covers."""
        height, width = self.ink.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


@dataclass
class Canvas:
    """The picture under construction and its labels; alpha and colour only where they are asked for."""

    image: Pixels
    ink: Floats
    label: NDArray[np.bool_]
    alpha: Floats | None = None
    color: Floats | None = None
    opacities: list[float] = field(default_factory=list)

    @classmethod
    def over(cls, photo: Pixels, parts: bool) -> "Canvas":
        """Start from a photo without marks."""
        shape = photo.shape[:2]
        canvas = cls(photo.copy(), np.zeros(shape, np.float32), np.zeros(shape, bool))
        if parts:
            canvas.alpha, canvas.color = np.zeros(shape, np.float32), np.zeros(photo.shape, np.float32)
        return canvas


@dataclass(frozen=True)
class Composite:
    """A finished sample, uint8 H×W(×3) pixels and boolean planes."""

    image: Pixels
    label: NDArray[np.bool_]
    ignore: NDArray[np.bool_]
    family: str
    opacity: float
    alpha: Pixels | None = None
    color: Pixels | None = None


def compose(
    photo: Pixels, marks: Marks, settings: CompositingSettings, rng: np.random.Generator, parts: bool = False
) -> Composite:
    """Lay marks over a photo and label what can be seen of them.

    Args:
        photo: RGB, any size; the result has the same.
        marks: Where marks come from.
        settings: What to draw.
        rng: All draws come from it.
        parts: Whether to return the marks' alpha and colour too.
    """
    signed = rng.random() < settings.sign_fraction
    if signed:
        photo = paint_sign(photo, marks, rng)
    if (blur := rng.uniform(*settings.photo_blur)) > 0.2:  # below, a Gaussian is narrower than a pixel
        photo = cv2.GaussianBlur(photo, (0, 0), blur)
    canvas = Canvas.over(photo, parts)
    family = "hard_negative" if signed else "clean"
    if rng.random() >= settings.clean_fraction:
        drawn = pick(settings.families, rng)
        for _ in range(int(rng.integers(1, settings.most.get(drawn, 1) + 1))):
            if _add_visible_mark(canvas, marks, drawn, settings, rng):
                family = drawn
    return _finish(canvas, family, settings, rng)


def pick(weights: Mapping[str, float], rng: np.random.Generator) -> str:
    """Draw a name with probability proportional to its weight."""
    names = list(weights)
    bounds = np.cumsum([weights[name] for name in names])
    return names[min(int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right")), len(names) - 1)]


def _add_visible_mark(
    canvas: Canvas, marks: Marks, family: str, settings: CompositingSettings, rng: np.random.Generator
) -> bool:
    """Draw marks until one can be seen; after three that cannot, leave the canvas as it was."""
    for attempt in range(3):
        layer = _place(canvas.ink.shape, marks, family, settings, rng)
        mode = pick(settings.modes, rng)
        opacity = rng.uniform(*settings.opacity)
        if layer is None:
            continue
        if attempt == 2:  # what blending hides, plain ink shows
            mode, opacity = "normal", max(opacity, 0.6)
        if _lay(canvas, layer, mode, opacity, settings):
            return True
    return False


def _lay(canvas: Canvas, layer: Layer, mode: str, opacity: float, settings: CompositingSettings) -> bool:
    """Blend a layer in if enough of it can be seen."""
    window = layer.window
    before = canvas.image[window]
    alpha = layer.ink * np.float32(opacity)
    after = _blend(before, layer.color, alpha, mode)
    change = cv2.transform(cv2.absdiff(before, after), np.ones((1, 3), np.float32))  # saturates, far above the floor
    inked = layer.ink > settings.ink_threshold * layer.ink.max()
    visible = inked & (change >= settings.visible_change)
    if np.count_nonzero(visible) < max(4, settings.visible_share * np.count_nonzero(inked)):
        return False
    canvas.image[window] = after
    canvas.label[window] |= visible
    np.maximum(canvas.ink[window], layer.ink, out=canvas.ink[window])
    if canvas.alpha is not None and canvas.color is not None:
        rest = 1 - alpha
        canvas.color[window] = canvas.color[window] * rest[..., None] + layer.color * alpha[..., None]
        canvas.alpha[window] = 1 - (1 - canvas.alpha[window]) * rest
    canvas.opacities.append(float(opacity))
    return True


def _blend(before: Pixels, color: Floats, alpha: Floats, mode: str) -> Pixels:
    backdrop = torch.from_numpy(before.astype(np.float32)).mul_(1 / 255)
    cover = torch.from_numpy(alpha)[..., None]
    blended = composite(backdrop, torch.from_numpy(color), cover, mode, channel_dim=-1)
    pixels: Pixels = blended.mul_(255).round_().to(torch.uint8).numpy()
    return pixels


def _finish(canvas: Canvas, family: str, settings: CompositingSettings, rng: np.random.Generator) -> Composite:
    ignore = canvas.ink > 0.05
    if settings.ignore_px and canvas.opacities:
        side = 2 * settings.ignore_px + 1
        ignore |= cv2.dilate(canvas.label.view(np.uint8), np.ones((side, side), np.uint8)).view(bool)
    ignore &= ~canvas.label
    image = degrade(canvas.image, rng) if rng.random() < settings.degraded_fraction else canvas.image
    opacity = float(np.mean(canvas.opacities)) if canvas.opacities else float("nan")
    if canvas.alpha is None or canvas.color is None:
        return Composite(image, canvas.label, ignore, family, opacity)
    straight = canvas.color / np.maximum(canvas.alpha, 1e-3)[..., None]
    alpha, color = (np.rint(np.clip(part, 0, 1) * 255).astype(np.uint8) for part in (canvas.alpha, straight))
    return Composite(image, canvas.label, ignore, family, opacity, alpha, color)


def _place(
    shape: tuple[int, ...], marks: Marks, family: str, settings: CompositingSettings, rng: np.random.Generator
) -> Layer | None:
    """Draw a mark of a family and put it where that family goes; None if nothing of it falls on the canvas."""
    height, width = shape
    diagonal = float(np.hypot(height, width))
    kind = family if family in ("logo", "text") else ("text" if rng.random() < 0.6 else "logo")
    if family == "tiled":
        return _tile(shape, *_legible(marks, rng, diagonal * rng.uniform(0.08, 0.3), kind, settings), rng)
    extent = diagonal * rng.uniform(*settings.extent)
    angle, center = 0.0, (rng.uniform(0, width), rng.uniform(0, height))
    if family == "diagonal":
        extent = diagonal * rng.uniform(0.5, 0.95)
        angle = float(rng.choice([-1, 1]) * np.degrees(np.arctan2(height, width)) + rng.normal(0, 6))
        center = (width / 2 + rng.normal(0, 0.05) * width, height / 2 + rng.normal(0, 0.05) * height)
    elif family == "corner":
        extent = diagonal * rng.uniform(0.1, 0.35)
    elif rng.random() < settings.rotated_fraction:
        angle = rng.uniform(0, 360)
    mark, extent = _legible(marks, rng, extent, kind, settings)
    if family == "corner":
        center = _corner_center(mark, extent, (height, width), rng)
    return warp_mark(mark, extent, angle, center, (height, width))


def _legible(
    marks: Marks, rng: np.random.Generator, extent: float, kind: str, settings: CompositingSettings
) -> tuple[Pixels, float]:
    """Draw a mark and the diagonal at which its shorter side is long enough."""
    mark = marks.draw(rng, max(extent, 8.0 * settings.shortest_px), kind)
    shortest = settings.shortest_px * float(np.hypot(*mark.shape[:2])) / min(mark.shape[:2])
    return mark, max(extent, min(shortest, 12.0 * settings.shortest_px))


def _corner_center(
    mark: Pixels, extent: float, canvas_hw: tuple[int, int], rng: np.random.Generator
) -> tuple[float, float]:
    height, width = canvas_hw
    scale = extent / np.hypot(*mark.shape[:2])
    half_h, half_w = mark.shape[0] * scale / 2, mark.shape[1] * scale / 2
    margin = rng.uniform(0.01, 0.06) * min(height, width)
    x, y = half_w + margin, half_h + margin
    return (x if rng.random() < 0.4 else width - x), (y if rng.random() < 0.3 else height - y)


def warp_mark(
    mark: Pixels, extent: float, angle: float, center: tuple[float, float], canvas_hw: tuple[int, int]
) -> Layer | None:
    """Scale, rotate and place a mark in one warp.

    Args:
        mark: Premultiplied RGBA.
        extent: Length of its diagonal on the canvas.
        angle: Counter-clockwise, in degrees.
        center: Where its centre falls, (x, y).
        canvas_hw: Size of the canvas.
    """
    scale = extent / float(np.hypot(*mark.shape[:2]))
    if scale < 0.5:  # a warp samples 2×2 pixels: what shrinks more is averaged first
        size = (max(1, round(mark.shape[1] * scale)), max(1, round(mark.shape[0] * scale)))
        mark = cv2.resize(mark, size, interpolation=cv2.INTER_AREA)
        scale = extent / float(np.hypot(*mark.shape[:2]))
    middle = (mark.shape[1] / 2 - 0.5, mark.shape[0] / 2 - 0.5)
    matrix = cv2.getRotationMatrix2D(middle, angle, scale)
    matrix[:, 2] += np.array(center) - middle
    corners = np.array([[0, 0, 1], [mark.shape[1], 0, 1], [0, mark.shape[0], 1], [*mark.shape[1::-1], 1]])
    placed = corners @ matrix.T
    left, top = np.maximum(np.floor(placed.min(axis=0)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(placed.max(axis=0)).astype(int) + 1, canvas_hw[::-1])
    if right - left < 2 or bottom - top < 2:
        return None
    matrix[:, 2] -= (left, top)
    return _layer(cv2.warpAffine(mark, matrix, (int(right - left), int(bottom - top))), int(top), int(left))


def _layer(premultiplied: Pixels, top: int, left: int) -> Layer | None:
    alpha = premultiplied[..., 3]
    if alpha.max(initial=0) < 25:
        return None
    # Straight colour = premultiplied / alpha; the levels of both cancel. Rounding may pass 1 where alpha is tiny.
    color = premultiplied[..., :3].astype(np.float32)
    color *= (1 / np.maximum(alpha, 1).astype(np.float32))[..., None]
    return Layer(top, left, np.minimum(color, 1, out=color), alpha.astype(np.float32) * np.float32(1 / 255))


def _tile(shape: tuple[int, ...], mark: Pixels, extent: float, rng: np.random.Generator) -> Layer | None:
    """Repeat a mark over the whole canvas on a turned lattice, every second row shifted or not."""
    height, width = shape
    scale = extent / float(np.hypot(*mark.shape[:2]))
    size = (max(1, round(mark.shape[1] * scale)), max(1, round(mark.shape[0] * scale)))
    mark = cv2.resize(mark, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    gap_y, gap_x = (rng.uniform(0.3, 1.5, 2) * max(8.0, min(mark.shape[:2]))).astype(int)
    cell = np.pad(mark, ((0, int(gap_y)), (0, int(gap_x)), (0, 0)))
    reach = int(np.hypot(height, width)) + 2
    row = np.tile(cell, (1, reach // cell.shape[1] + 2, 1))
    shift = cell.shape[1] // 2 if rng.random() < 0.6 else 0
    pair = np.concatenate([row, np.roll(row, shift, axis=1)])
    sheet = np.tile(pair, (reach // pair.shape[0] + 1, 1, 1))[:, : reach + cell.shape[1]]
    angle = rng.uniform(15, 50) * rng.choice([-1, 1]) if rng.random() < 0.75 else 0.0
    phase = rng.uniform(0, 1, 2) * cell.shape[1::-1]
    matrix = cv2.getRotationMatrix2D((sheet.shape[1] / 2, sheet.shape[0] / 2), float(angle), 1.0)
    matrix[:, 2] += (width / 2, height / 2) - np.array(sheet.shape[1::-1]) / 2 + phase * 0.5
    return _layer(cv2.warpAffine(sheet, matrix, (width, height), borderMode=cv2.BORDER_WRAP), 0, 0)


def paint_sign(photo: Pixels, marks: Marks, rng: np.random.Generator) -> Pixels:
    """Put a sign into the scene: a panel with a print, opaque, in perspective, under the light of its place.

    It belongs to the scene and is not a mark; a segmenter that marks it errs.
    """
    height, width = photo.shape[:2]
    side = max(12, round(float(np.hypot(height, width)) * rng.uniform(0.12, 0.5)))
    mark = marks.draw(rng, side, "text" if rng.random() < 0.6 else "logo")
    if (shrink := side / float(np.hypot(*mark.shape[:2]))) < 1:
        mark = cv2.resize(mark, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    margin = int(rng.uniform(0.08, 0.3) * min(mark.shape[:2])) + 2
    mark = np.pad(mark, ((margin, margin), (margin, margin), (0, 0)))
    print_ = mark[..., :3] + _panel_color(mark, rng) * (1 - mark[..., 3:].astype(np.float32) / 255)
    h, w = print_.shape[:2]
    source = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32)
    scale = side / float(np.hypot(h, w))
    target = (source - (w / 2, h / 2)) * scale + rng.normal(0, 0.06 * side, (4, 2))
    target += (rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height)
    matrix = cv2.getPerspectiveTransform(source, target.astype(np.float32))
    warped = cv2.warpPerspective(print_.astype(np.float32), matrix, (width, height))
    cover = cv2.warpPerspective(np.ones((h, w), np.float32), matrix, (width, height))[..., None]
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    # A handful of means, enlarged smoothly, are the light of the place.
    coarse = cv2.resize(cv2.resize(grey, (6, 6), interpolation=cv2.INTER_AREA), (width, height)).astype(np.float32)
    light = (np.clip(coarse / max(1.0, float(coarse.mean())), 0.4, 1.4) * rng.uniform(0.6, 1.1))[..., None]
    painted = photo * (1 - cover) + np.clip(warped * light, 0, 255) * cover
    pixels: Pixels = np.rint(painted).astype(np.uint8)
    return pixels


def _panel_color(mark: Pixels, rng: np.random.Generator) -> Floats:
    """A flat colour that the print stands out from."""
    ink = mark[..., :3][mark[..., 3] > 200]
    brightness = float(ink.mean()) if len(ink) else 128.0
    base = rng.uniform(0, 70, 3) if brightness > 128 else rng.uniform(150, 255, 3)
    return base.astype(np.float32)
