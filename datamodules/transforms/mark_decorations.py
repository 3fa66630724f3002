"""What designers put around the ink of a mark: shadow, rim, emboss."""

import cv2
import numpy as np

from datamodules.transforms.mark_layers import BLACK, WHITE, Layer, Mask, Paint, draw_colour, grown, ink_of, placed


def _shifted(mask: Mask, dy: int, dx: int) -> Mask:
    return placed(mask, mask.shape[0], mask.shape[1], dy, dx)


def padded(layers: list[Layer], margin: int) -> list[Layer]:
    """The same layers on a canvas larger by a margin on every side."""

    def grow(mask: Mask) -> Mask:
        grown_mask: Mask = cv2.copyMakeBorder(mask, margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=0)
        return grown_mask

    return [Layer(grow(layer.mask), layer.paint, layer.opacity) for layer in layers]


def decorated(rng: np.random.Generator, layers: list[Layer], height: int = 0) -> list[Layer]:
    """Adds a shadow, a rim or an emboss to one mark in three, of a strength fit for details of that height."""
    kind, n = rng.random(), height * 2 or max(layers[0].mask.shape)
    if kind < 0.12:
        return _with_shadow(rng, layers, n)
    if kind < 0.22:
        radius = max(1, round(n * rng.uniform(0.005, 0.025)))
        layers = padded(layers, radius)
        rim = grown(ink_of(layers), radius)[radius:-radius, radius:-radius]
        paint = [WHITE, BLACK, Paint(draw_colour(rng))][rng.integers(3)]
        return [Layer(rim, paint, rng.uniform(0.5, 1)), *layers]
    if kind < 0.32:
        return _embossed(rng, layers, n)
    return layers


def _with_shadow(rng: np.random.Generator, layers: list[Layer], n: int) -> list[Layer]:
    reach = max(1, round(n * rng.uniform(0.01, 0.03)))
    layers = padded(layers, reach * 3)
    ink = ink_of(layers)
    cast = _shifted(ink, reach, int(rng.integers(-reach, reach + 1)))
    if rng.random() < 0.7:
        cast = cv2.blur(cv2.blur(cast, (reach * 2 + 1,) * 2), (reach * 2 + 1,) * 2)
    # The shadow lies under the ink but must not fill its holes with opaque black.
    return [Layer(cast, BLACK, rng.uniform(0.25, 0.7)), *_without_holes(layers, ink)]


def _without_holes(layers: list[Layer], ink: Mask) -> list[Layer]:
    """The same picture with holes cut into the masks, so that what lies below shows through."""
    if not any(layer.paint.erase for layer in layers):
        return layers
    return [Layer(cv2.min(layer.mask, ink), layer.paint, layer.opacity) for layer in layers if not layer.paint.erase]


def _embossed(rng: np.random.Generator, layers: list[Layer], n: int) -> list[Layer]:
    reach = max(1, round(n * rng.uniform(0.006, 0.02)))
    ink = ink_of(layers)
    light = cv2.subtract(ink, _shifted(ink, reach, reach))
    dark = cv2.subtract(ink, _shifted(ink, -reach, -reach))
    body = _without_holes(layers, ink)
    if rng.random() < 0.5:
        # As stock agencies do: hardly any body, mostly edges.
        faint = rng.uniform(0.15, 0.5)
        body = [Layer(layer.mask, layer.paint, layer.opacity * faint) for layer in body]
    return [*body, Layer(light, WHITE, rng.uniform(0.4, 1)), Layer(dark, BLACK, rng.uniform(0.3, 1))]
