"""Endless marks that need no files: logos from a grammar of shapes, and text in many fonts."""

from collections.abc import Callable
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.transforms.fonts import Split, emoji_paths, load_emoji
from datamodules.transforms.mark_decorations import decorated, padded
from datamodules.transforms.mark_layers import (
    BLACK,
    ERASE,
    WHITE,
    Layer,
    Mask,
    Paint,
    Rgba,
    crop_tight,
    draw_palette,
    fill_transparent,
    finish,
    grown,
    is_mono,
    outlined,
    placed,
    shrunk,
)
from datamodules.transforms.mark_shapes import draw_container, draw_shape
from datamodules.transforms.mark_text import draw_font, draw_lines, draw_name, draw_sentence, text_mask

Family = Literal["logo", "text"]
_LOGO_SHARE = 0.55
_EMOJI_SHARE = 0.15


def draw_mark(rng: np.random.Generator, size: int, family: Family | None = None, split: Split = "train") -> Rgba:
    """A tightly cropped RGBA mark (straight alpha) whose longer side is about `size` pixels.

    Args:
        rng: the only source of chance; the same state draws the same pixels.
        size: length of the longer side, at least 8.
        family: what to draw; without it, slightly more logos than text.
        split: `held_out` leads with shapes, fonts and emoji that `train` never shows.
    """
    if size < 8:
        raise ValueError(f"size of a mark must be at least 8 pixels, got {size}")
    if family is None:
        family = "logo" if rng.random() < _LOGO_SHARE else "text"
    if family not in ("logo", "text"):
        raise ValueError(f"family must be 'logo', 'text' or None, got {family!r}")
    if family == "text":
        return _draw_text(rng, size, split)
    if emoji_paths(split) and rng.random() < _EMOJI_SHARE:
        return _draw_emoji(rng, size, split)
    return _draw_logo(rng, size, split)


def _canvas(size: int) -> int:
    # Twice as fine as the result while that is cheap; OpenCV's own anti-aliasing does for large marks.
    return max(48, size * 2 if size <= 192 else round(size * 1.04))


def _draw_emoji(rng: np.random.Generator, size: int, split: Split) -> Rgba:
    paths = emoji_paths(split)
    image = np.asarray(load_emoji(paths[rng.integers(len(paths))])).astype(np.float32)
    image[..., :3] *= image[..., 3:] / 255
    scale = size / max(image.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=how).clip(0, 255)
    alpha = np.ascontiguousarray(image[..., 3]) / 255
    if rng.random() < 0.3:
        image[..., :3] = image[..., :3].mean(-1, keepdims=True)
    colour = (image[..., :3] / np.maximum(alpha, 1e-3)[..., None]).clip(0, 255).astype(np.uint8)
    fill_transparent(colour, alpha)
    return crop_tight(np.dstack([colour, np.round(image[..., 3]).astype(np.uint8)]))


def _draw_logo(rng: np.random.Generator, size: int, split: Split) -> Rgba:
    palette = draw_palette(rng)
    compose = _ARRANGEMENTS[rng.choice(len(_ARRANGEMENTS), p=_ARRANGEMENT_SHARES)]
    layers = compose(rng, _canvas(size), split, palette)
    return finish(decorated(rng, layers), size)


def _varied(rng: np.random.Generator, mask: Mask) -> Mask:
    """The shape as it is, turned, as an outline, sliced, or stretched."""
    kind, n = rng.random(), mask.shape[0]
    if kind < 0.15:
        turn = cv2.getRotationMatrix2D((n / 2 - 0.5, n / 2 - 0.5), rng.uniform(0, 360), 0.8)
        turned: Mask = cv2.warpAffine(mask, turn, (n, n))
        return turned
    if kind < 0.27:
        return outlined(mask, max(1, round(n * rng.uniform(0.015, 0.06))))
    if kind < 0.35:
        y, half = int(n * rng.uniform(0.25, 0.75)), max(1, int(n * rng.uniform(0.01, 0.04)))
        rise = rng.uniform(-0.6, 0.6)
        lean = np.array([[1, 0, 0], [rise, 1, -rise * n / 2]])
        cut = np.full((n, n), 255, np.uint8)
        cut[y - half : y + half] = 0
        result: Mask = cv2.min(mask, cv2.warpAffine(cut, lean, (n, n), borderValue=255))
        return result
    return mask


def _solid(rng: np.random.Generator, n: int, split: Split, palette: list[Paint]) -> list[Layer]:
    layers = [Layer(_varied(rng, draw_shape(rng, n, split)), palette[0])]
    if rng.random() < 0.3:
        inner = shrunk(draw_shape(rng, n, split), rng.uniform(0.3, 0.55))
        layers.append(Layer(inner, palette[1]))
    return layers


def _badge(rng: np.random.Generator, n: int, split: Split, palette: list[Paint]) -> list[Layer]:
    plate = draw_container(rng, n, split)
    symbol = shrunk(_varied(rng, draw_shape(rng, n, split)), rng.uniform(0.42, 0.66))
    layers = [Layer(plate, palette[0], 1.0 if rng.random() < 0.85 else rng.uniform(0.3, 0.8))]
    if rng.random() < 0.35:
        rim = outlined(shrunk(plate, rng.uniform(0.8, 0.95)), max(1, round(n * rng.uniform(0.008, 0.03))))
        layers.append(Layer(rim, palette[1]))
    return [*layers, Layer(symbol, palette[1])]


def _outline_badge(rng: np.random.Generator, n: int, split: Split, palette: list[Paint]) -> list[Layer]:
    rim = outlined(draw_container(rng, n, split), max(1, round(n * rng.uniform(0.012, 0.07))))
    symbol = shrunk(draw_shape(rng, n, split), rng.uniform(0.4, 0.62))
    return [Layer(rim, palette[0]), Layer(symbol, palette[0] if palette[1].erase else palette[2])]


def _rosette(rng: np.random.Generator, n: int, split: Split, palette: list[Paint]) -> list[Layer]:
    """A small shape repeated around the centre, in turning colours."""
    count, piece = int(rng.integers(2, 13)), draw_shape(rng, n // 2, split)
    scale, reach = rng.uniform(0.9, 2.4) / max(count, 3), rng.uniform(0.24, 0.32)
    small = max(4, round(n * min(scale, 0.5)))
    piece = placed(cv2.resize(piece, (small, small), interpolation=cv2.INTER_AREA), n, n,
                   round(n * (0.5 - reach) - small / 2), (n - small) // 2)  # fmt: skip
    inks = [paint for paint in palette if not paint.erase]
    inks = inks[: 1 if is_mono(palette) else int(rng.integers(1, 5))]
    masks = [np.zeros((n, n), np.uint8) for _ in inks]
    for k in range(count):
        turn = cv2.getRotationMatrix2D((n / 2 - 0.5, n / 2 - 0.5), 360 * k / count, 1.0)
        slot = masks[k % len(masks)]
        np.maximum(slot, cv2.warpAffine(piece, turn, (n, n)), out=slot)
    centre = [Layer(shrunk(draw_shape(rng, n, split), rng.uniform(0.15, 0.35)), inks[-1])] if rng.random() < 0.4 else []
    return [Layer(mask, paint) for mask, paint in zip(masks, inks, strict=True)] + centre


def _emblem(rng: np.random.Generator, n: int, split: Split, palette: list[Paint]) -> list[Layer]:
    """Concentric plates in alternating paints with a symbol in the middle."""
    plate, scale = draw_container(rng, n, split), 1.0
    layers = []
    for k in range(int(rng.integers(2, 5))):
        layers.append(Layer(shrunk(plate, scale) if k else plate, palette[k % 4]))
        scale *= rng.uniform(0.72, 0.93)
    symbol = shrunk(draw_shape(rng, n, split), scale * rng.uniform(0.5, 0.75))
    return [*layers, Layer(symbol, palette[len(layers) % 4])]


def _seal(rng: np.random.Generator, n: int, split: Split, palette: list[Paint]) -> list[Layer]:
    """A round stamp with words along its rim."""
    font, ring = draw_font(rng, split), np.zeros((n, n), np.uint8)
    words = [draw_sentence(rng, font)[:22] for _ in range(2 if rng.random() < 0.6 else 1)]
    band, radius = rng.uniform(0.11, 0.17) * n, 0.5 * n * rng.uniform(0.8, 0.9)
    for k, word in enumerate(words):
        line = text_mask([word], font, round(n * 0.9), spacing=0.08)
        ring = cv2.max(ring, _bent(line, n, radius, band, upside_down=bool(k)))
    rims = [Layer(outlined(shrunk(_plate(n), s), max(1, n // 60)), palette[0]) for s in (1.0, 1 - band / n * 3.4)]
    symbol = shrunk(draw_shape(rng, n, split), rng.uniform(0.3, 0.45))
    if rng.random() < 0.4:
        return [Layer(_plate(n), palette[0]), Layer(ring, palette[1]), Layer(symbol, palette[1])]
    return [*rims, Layer(ring, palette[0]), Layer(symbol, palette[0] if palette[2].erase else palette[2])]


def _plate(n: int) -> Mask:
    result: Mask = cv2.circle(np.zeros((n, n), np.uint8), (n * 8, n * 8), round(n * 0.48 * 16), 255, -1, cv2.LINE_AA, 4)
    return result


def _bent(line: Mask, n: int, radius: float, height: float, *, upside_down: bool) -> Mask:
    """A line of text along the upper half of a circle, or along the lower half from left to right."""
    y, x = np.mgrid[:n, :n].astype(np.float32) - np.float32(n / 2 - 0.5)
    distance, scale = np.hypot(x, y), np.float32(line.shape[0] / height)
    angle = np.arctan2(x, y) if upside_down else np.arctan2(x, -y)
    depth = (distance - (radius - height)) if upside_down else (radius - distance)
    reach = min(float(radius) * 1.35, line.shape[1] / scale / 2)  # half the length, squeezed into the half circle
    along = (angle * np.float32(radius - height / 2) / np.float32(reach) + 1) * np.float32(line.shape[1] / 2)
    result: Mask = cv2.remap(line, along.astype(np.float32), depth * scale, cv2.INTER_LINEAR)
    return result


def _sliced(rng: np.random.Generator, n: int, split: Split, palette: list[Paint]) -> list[Layer]:
    """One shape cut into facets, bands or sectors of different paint."""
    shape, inks = draw_shape(rng, n, split), [paint for paint in palette if not paint.erase]
    layers = [Layer(shape, inks[0])]
    hub = np.array([n / 2, n / 2]) + rng.uniform(-0.15, 0.15, 2) * n
    angles = np.sort(rng.uniform(0, 6.283, int(rng.integers(2, 8))))
    for k, angle in enumerate(angles):
        after = angles[(k + 1) % len(angles)]
        rim = (
            [hub + 2 * n * np.array([np.cos(a), np.sin(a)]) for a in np.linspace(angle, after, 4)]
            if after > angle
            else []
        )
        wedge = np.zeros((n, n), np.uint8)
        if rim:
            cv2.fillPoly(wedge, [np.round([hub, *rim]).astype(np.int32)], 255, cv2.LINE_AA)
        paint = inks[(k + 1) % len(inks)]
        layers.append(Layer(cv2.min(wedge, shape), paint, 1.0 if k % 2 else rng.uniform(0.4, 1)))
    if is_mono(palette):
        layers = [Layer(layer.mask, layer.paint, 1.0 if k % 2 else 0.5) for k, layer in enumerate(layers[1:])] or layers
    return layers


def _lockup(rng: np.random.Generator, n: int, split: Split, palette: list[Paint]) -> list[Layer]:
    """A symbol and a word beside or under it, sometimes with a smaller second line."""
    inks = [paint for paint in palette if not paint.erase]
    font, under = draw_font(rng, split), bool(rng.random() < 0.35)
    text = text_mask(
        [draw_name(rng, font)], font, round(n * (1.0 if under else 0.75)), spacing=rng.choice([0, 0, 0.05])
    )
    if rng.random() < 0.25:
        text = _stacked(text, text_mask([draw_sentence(rng, font)], font, text.shape[1]), round(n * 0.03))
    side = max(24, min(n // 2, round(n * 0.5 if under else text.shape[0] * rng.uniform(1.1, 2.4))))
    symbol = _SYMBOLS[rng.integers(len(_SYMBOLS))](rng, side, split, palette)
    gap = round(side * rng.uniform(0.1, 0.35))
    if under:
        height, width = side + gap + text.shape[0], max(side, text.shape[1])
        at_symbol, at_text = (0, (width - side) // 2), (side + gap, (width - text.shape[1]) // 2)
    else:
        height, width = max(side, text.shape[0]), side + gap + text.shape[1]
        at_symbol, at_text = ((height - side) // 2, 0), ((height - text.shape[0]) // 2, side + gap)
    layers = [Layer(placed(s.mask, height, width, *at_symbol), s.paint, s.opacity) for s in symbol]
    return [*layers, Layer(placed(text, height, width, *at_text), inks[rng.integers(len(inks))])]


def _stacked(upper: Mask, lower: Mask, gap: int) -> Mask:
    height, width = upper.shape[0] + gap + lower.shape[0], max(upper.shape[1], lower.shape[1])
    top = placed(upper, height, width, 0, (width - upper.shape[1]) // 2)
    result: Mask = cv2.max(top, placed(lower, height, width, upper.shape[0] + gap, (width - lower.shape[1]) // 2))
    return result


def _label(rng: np.random.Generator, n: int, split: Split, palette: list[Paint]) -> list[Layer]:
    """A word on a plate."""
    font = draw_font(rng, split)
    text = text_mask([draw_name(rng, font)], font, round(n * 0.8))
    pad = max(2, round(text.shape[0] * rng.uniform(0.25, 0.8)))
    height, width = text.shape[0] + 2 * pad, text.shape[1] + 2 * pad
    plate = np.zeros((height, width), np.uint8)
    radius = round(min(height, width) * rng.choice([0.02, 0.15, 0.3, 0.5]))
    rect = np.full((max(1, height - 2 * radius), max(1, width - 2 * radius)), 255, np.uint8)
    plate = grown(rect, radius)[:height, :width] if radius else plate + 255
    plate = placed(plate, height, width, 0, 0)
    return [
        Layer(plate, palette[0], rng.choice([1.0, 1.0, 0.6])),
        Layer(placed(text, height, width, pad, pad), palette[1]),
    ]


def _wordmark(rng: np.random.Generator, n: int, split: Split, palette: list[Paint]) -> list[Layer]:
    """A name by itself, one letter of it perhaps in another paint."""
    inks = [paint for paint in palette if not paint.erase]
    font = draw_font(rng, split)
    text = text_mask([draw_name(rng, font)], font, n, spacing=float(rng.choice([0, 0, -0.05, 0.15])))
    layers = [Layer(text, inks[0])]
    if rng.random() < 0.3 and len(inks) > 2:
        part = text.copy()
        part[:, : round(text.shape[1] * rng.uniform(0.2, 0.8))] = 0
        layers.append(Layer(part, inks[2]))
    if rng.random() < 0.25:
        bar = max(1, round(text.shape[0] * 0.1))
        line = np.full((bar, text.shape[1]), 255, np.uint8)
        layers = [Layer(_stacked(text, line, bar), inks[-1]), *(_with_foot(layer, bar * 2) for layer in layers)]
    return layers


def _with_foot(layer: Layer, rows: int) -> Layer:
    return Layer(placed(layer.mask, layer.mask.shape[0] + rows, layer.mask.shape[1], 0, 0), layer.paint, layer.opacity)


Arrangement = Callable[[np.random.Generator, int, Split, list[Paint]], list[Layer]]
_SYMBOLS: tuple[Arrangement, ...] = (_solid, _solid, _badge, _outline_badge, _rosette, _emblem, _sliced)
_ARRANGEMENTS: tuple[Arrangement, ...] = (
    _solid, _badge, _outline_badge, _rosette, _emblem, _seal, _sliced, _lockup, _label, _wordmark,
)  # fmt: skip
_ARRANGEMENT_SHARES = (0.19, 0.17, 0.06, 0.1, 0.08, 0.06, 0.07, 0.16, 0.04, 0.07)


def _leaning(mask: Mask, lean: float) -> Mask:
    """The mask slanted to the right by a share of its height."""
    h, w = mask.shape
    extra = round(abs(lean) * h)
    shear: NDArray[np.floating[Any]] = np.array([[1, -lean, extra if lean > 0 else 0], [0, 1, 0]], np.float32)
    result: Mask = cv2.warpAffine(mask, shear, (w + extra, h))
    return result


def _text_body(rng: np.random.Generator, n: int, split: Split) -> tuple[Mask, int]:
    """The ink of one to five lines, and about how high one of them is."""
    font = draw_font(rng, split)
    lines = draw_lines(rng, font)
    spacing = float(rng.choice([0, 0, 0, 0.06, 0.15, 0.3]))
    mask = text_mask(lines, font, n, spacing=spacing, align=float(rng.choice([0, 0.5, 0.5, 1])))
    line_height = round(mask.shape[0] / (len(lines) * 1.4 - 0.4))
    if rng.random() < 0.15:
        mask = _leaning(mask, rng.uniform(-0.1, 0.35))
    if mask.shape[1] > 9 * mask.shape[0]:
        # Beyond 9:1 a line is hardly readable at small sizes; two copies under each other keep it usable.
        mask = _stacked(mask, mask, round(mask.shape[0] * 0.4))
    return mask, line_height


def _framed(rng: np.random.Generator, text: Mask) -> Mask:
    pad, line = max(2, round(text.shape[0] * rng.uniform(0.2, 0.5))), max(1, round(text.shape[0] * 0.05))
    out = placed(text, text.shape[0] + 2 * pad, text.shape[1] + 2 * pad, pad, pad)
    if rng.random() < 0.5:
        cv2.rectangle(out, (0, 0), (out.shape[1] - 1, out.shape[0] - 1), 255, line * 2)
    else:
        out[: line + 1], out[-line - 1 :] = 255, 255
    return out


def _draw_text(rng: np.random.Generator, size: int, split: Split) -> Rgba:
    palette = draw_palette(rng)
    text, line_height = _text_body(rng, _canvas(size), split)
    if rng.random() < 0.1:
        text = _framed(rng, text)
    stroke = max(1, round(line_height * rng.uniform(0.02, 0.06)))
    kind, ink = rng.random(), palette[0]
    if kind < 0.62:
        layers = [Layer(text, ink)]
    elif kind < 0.76:
        rim = BLACK if sum(ink.colour) > 300 else WHITE
        layers = [Layer(grown(text, stroke), rim, rng.uniform(0.4, 1)), *padded([Layer(text, ink)], stroke)]
    elif kind < 0.88:
        layers = [Layer(cv2.subtract(grown(text, stroke), padded([Layer(text, ink)], stroke)[0].mask), ink)]
    elif kind < 0.95:
        layers = _on_panel(rng, text, palette, round(line_height * rng.uniform(0.2, 0.6)) + 1)
    else:
        layers = _after_symbol(rng, text, ink, split)
    return finish(decorated(rng, layers, line_height), size)


def _on_panel(rng: np.random.Generator, text: Mask, palette: list[Paint], pad: int) -> list[Layer]:
    height, width = text.shape[0] + 2 * pad, text.shape[1] + 2 * pad
    plate = np.full((height, width), 255, np.uint8)
    words = placed(text, height, width, pad, pad)
    if palette[1].erase and rng.random() < 0.5:
        return [Layer(plate, palette[0], rng.uniform(0.4, 1)), Layer(words, ERASE)]
    contrast = BLACK if sum(palette[0].colour) > 300 else WHITE
    return [Layer(plate, contrast, rng.uniform(0.3, 1)), Layer(words, palette[0])]


def _after_symbol(rng: np.random.Generator, text: Mask, ink: Paint, split: Split) -> list[Layer]:
    symbol = _solid(rng, max(24, text.shape[0]), split, [ink, ERASE, ink, ERASE])
    side = symbol[0].mask.shape[0]
    left = side * 5 // 4
    layers = [Layer(placed(s.mask, side, left + text.shape[1], 0, 0), s.paint, s.opacity) for s in symbol]
    return [*layers, Layer(placed(text, side, left + text.shape[1], (side - text.shape[0]) // 2, left), ink)]
