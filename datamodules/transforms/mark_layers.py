"""Layers of one mark (a mask and a paint each) and how they become an RGBA picture."""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]
Rgb = NDArray[np.uint8]
Rgba = NDArray[np.uint8]
Pixels = NDArray[np.floating[Any]]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Paint:
    """One colour, or a gradient to a second one; `erase` cuts a hole instead."""

    colour: Colour
    to: Colour | None = None
    angle: float = 0.0
    erase: bool = False

    def on(self, height: int, width: int) -> Rgb:
        """The paint over a canvas of that size."""
        if self.to is None:
            out = np.empty((height, width, 3), np.uint8)
            out[:] = self.colour
            return out
        along = np.array([[-1.0, 1.0]]) * math.cos(self.angle) + np.array([[-1.0], [1.0]]) * math.sin(self.angle)
        share = (along / np.abs(along).max() * 0.5 + 0.5)[..., None]
        corners = np.array(self.colour) * (1 - share) + np.array(self.to) * share
        result: Rgb = cv2.resize(corners.astype(np.float32), (width, height)).astype(np.uint8)
        return result


ERASE = Paint((0, 0, 0), erase=True)
WHITE, BLACK = Paint((255.0, 255.0, 255.0)), Paint((0.0, 0.0, 0.0))


@dataclass(frozen=True)
class Layer:
    """A mask on the mark's canvas, what it is painted with, and how opaque that is."""

    mask: Mask
    paint: Paint
    opacity: float = 1.0


def _hue_colour(hue: float, saturation: float, value: float) -> Colour:
    rgb = cv2.cvtColor(np.array([[[hue, saturation, value]]], np.float32), cv2.COLOR_HSV2RGB)[0, 0] * 255
    return float(rgb[0]), float(rgb[1]), float(rgb[2])


def draw_colour(rng: np.random.Generator) -> Colour:
    """A colour as brands choose them: mostly vivid, sometimes navy-dark or pastel."""
    hue, kind = rng.uniform(0, 360), rng.random()
    if kind < 0.65:
        return _hue_colour(hue, rng.uniform(0.6, 1), rng.uniform(0.6, 1))
    if kind < 0.85:
        return _hue_colour(hue, rng.uniform(0.4, 1), rng.uniform(0.15, 0.5))
    return _hue_colour(hue, rng.uniform(0.1, 0.5), rng.uniform(0.7, 1))


def draw_palette(rng: np.random.Generator) -> list[Paint]:
    """Four paints: 35 % white, 10 % black, 18 % one colour, the rest several or gradients.

    With one colour, every second paint cuts a hole, so that stacked shapes stay visible.
    """
    kind = rng.random()
    if kind < 0.63:
        grey = rng.uniform(225, 255) if kind < 0.35 else rng.uniform(0, 40)
        only = Paint((grey, grey, grey) if kind < 0.45 else draw_colour(rng))
        return [only, ERASE, only, ERASE]
    colours = [draw_colour(rng) for _ in range(4)]
    neutral: Colour = (255.0, 255.0, 255.0) if rng.random() < 0.7 else (20.0, 20.0, 20.0)
    if rng.random() < 0.6:
        colours[1] = neutral
    if rng.random() < 0.35:
        return [Paint(a, b, rng.uniform(0, 6.3)) for a, b in zip(colours, colours[2:] + colours[:2], strict=True)]
    return [Paint(colour) for colour in colours]


def is_mono(palette: list[Paint]) -> bool:
    """Whether a palette has holes in place of further colours."""
    return any(paint.erase for paint in palette)


def placed(mask: Mask, height: int, width: int, y: int, x: int) -> Mask:
    """The mask on a larger empty canvas; what lies outside is cut."""
    out = np.zeros((height, width), np.uint8)
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + mask.shape[0], height), min(x + mask.shape[1], width)
    if bottom > top and right > left:
        out[top:bottom, left:right] = mask[top - y : bottom - y, left - x : right - x]
    return out


def shrunk(mask: Mask, scale: float, *, dy: float = 0.0, dx: float = 0.0) -> Mask:
    """A square mask made smaller about its centre and moved by shares of its side."""
    n = mask.shape[0]
    size = max(2, round(n * scale))
    small = cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA)
    return placed(small, n, n, round((n - size) / 2 + dy * n), round((n - size) / 2 + dx * n))


def grown(mask: Mask, radius: int) -> Mask:
    """The mask with its ink grown by a radius, on a canvas grown as much on every side."""
    padded = cv2.copyMakeBorder(mask, radius, radius, radius, radius, cv2.BORDER_CONSTANT, value=0)
    # A distance costs the same for every radius; a dilation by a disc costs its area.
    distance = cv2.distanceTransform((padded < 128).astype(np.uint8), cv2.DIST_L2, 3)
    result: Mask = cv2.max(padded, cv2.addWeighted(distance, -255, distance, 0, radius * 255 + 128, dtype=cv2.CV_8U))
    return result


def outlined(mask: Mask, radius: int) -> Mask:
    """Only the rim of the ink, `radius` pixels inwards."""
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    distance = cv2.distanceTransform((framed >= 128).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    result: Mask = cv2.subtract(mask, cv2.addWeighted(distance, 255, distance, 0, -radius * 255, dtype=cv2.CV_8U))
    return result


def ink_of(layers: list[Layer]) -> Mask:
    """What is covered when all layers are down, holes included."""
    ink = layers[0].mask
    for layer in layers[1:]:
        ink = cv2.subtract(ink, layer.mask) if layer.paint.erase else cv2.max(ink, layer.mask)
    return ink


def _bounds(layers: list[Layer]) -> tuple[int, int, int, int]:
    ink = ink_of(layers)
    x, y, w, h = cv2.boundingRect((ink > 8).astype(np.uint8))
    return (x, y, w, h) if w and h else (0, 0, ink.shape[1], ink.shape[0])


def _painted(layers: list[Layer]) -> tuple[Rgb, Pixels]:
    """Straight colour and alpha of the stack; colour is the first layer's where none was painted."""
    height, width = layers[0].mask.shape
    colour, alpha = layers[0].paint.on(height, width), layers[0].mask * np.float32(layers[0].opacity / 255)
    for layer in layers[1:]:
        x, y, w, h = cv2.boundingRect(layer.mask)
        if not w:
            continue
        inside = np.s_[y : y + h, x : x + w]
        cover, below = layer.mask[inside].astype(np.float32) * np.float32(layer.opacity / 255), alpha[inside]
        if layer.paint.erase:
            below *= 1 - cover
            continue
        total = cover + below * (1 - cover)
        share = cover / np.maximum(total, np.float32(1e-4))
        colour[inside] = cv2.blendLinear(layer.paint.on(height, width)[inside], colour[inside], share, 1 - share)
        alpha[inside] = total
    return colour, alpha


def fill_transparent(colour: Rgb, alpha: Pixels) -> None:
    """Gives clear pixels the colour of the ink around them, so that later resampling cannot bleed."""
    step = max(1, min(alpha.shape) // 48)
    coarse = alpha[::step, ::step]
    cells = (min(12, coarse.shape[1]), min(12, coarse.shape[0]))
    weight = cv2.resize(coarse, cells, interpolation=cv2.INTER_AREA)
    ink = cv2.resize(colour[::step, ::step] * coarse[..., None], cells, interpolation=cv2.INTER_AREA)
    weight, ink = (cv2.GaussianBlur(x, (0, 0), 1.5, borderType=cv2.BORDER_REPLICATE) for x in (weight, ink))
    mean = colour.reshape(-1, 3)[:: colour.shape[0]].mean(0)
    near = (ink + mean * 1e-4) / (weight + 1e-4)[..., None]
    near = cv2.resize(near.clip(0, 255).astype(np.uint8), (alpha.shape[1], alpha.shape[0]))
    cv2.copyTo(near, (alpha < 1 / 510).astype(np.uint8), colour)


def crop_tight(rgba: Rgba) -> Rgba:
    """Without the rows and columns at the borders in which alpha is 0 everywhere."""
    x, y, w, h = cv2.boundingRect((rgba[..., 3] > 0).astype(np.uint8))
    return np.ascontiguousarray(rgba[y : y + h, x : x + w]) if w and h else rgba


def _resized(mask: Mask, width: int, height: int) -> Mask:
    if mask.shape == (height, width):
        return np.ascontiguousarray(mask)
    how = cv2.INTER_AREA if width < mask.shape[1] else cv2.INTER_LINEAR
    result: Mask = cv2.resize(mask, (width, height), interpolation=how)
    return result


def finish(layers: list[Layer], size: int) -> Rgba:
    """The stack as an RGBA picture whose longer side is within a tenth of `size` pixels."""
    x, y, w, h = _bounds(layers)
    scale = size / max(w, h)
    scale = 1.0 if 0.94 < scale < 1.06 else scale
    width, height = max(1, round(w * scale)), max(1, round(h * scale))
    masks = [_resized(layer.mask[y : y + h, x : x + w], width, height) for layer in layers]
    stack = [Layer(mask, layer.paint, layer.opacity) for mask, layer in zip(masks, layers, strict=True)]
    colour, alpha = _painted(stack)
    if alpha.max() < 0.1:  # a hole as large as all the ink
        colour, alpha = _painted(stack[:1])
    fill_transparent(colour, alpha)
    return crop_tight(cv2.merge([colour, cv2.addWeighted(alpha, 255, alpha, 0, 0, dtype=cv2.CV_8U)]))
