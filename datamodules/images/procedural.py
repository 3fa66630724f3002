"""Endless scenes that need no files: stand-ins for photographs, with the statistics of photographs."""

import math
from collections.abc import Callable

import cv2
import numpy as np

from datamodules.images.scene_layers import (
    Rgb,
    as_mask,
    detailed,
    draw_texture,
    draw_tints,
    exposed,
    flat,
    lit,
    octaves,
    pasted,
    recorded,
    smooth_tints,
    tiles,
)
from datamodules.images.scene_objects import SQUARE, Points, add_branches, add_figure, add_litter, add_thing, add_things
from datamodules.images.scene_writing import draw_page, draw_panel

Scene = Callable[[np.random.Generator, int, int], Rgb]


def draw_scene(rng: np.random.Generator, size_hw: tuple[int, int], kind: str | None = None) -> Rgb:
    """A scene as uint8 RGB of the asked height and width; the same generator state gives the same pixels.

    Args:
        rng: the only source of chance.
        size_hw: height and width, each at least 16.
        kind: one of SCENE_KINDS; without it, one drawn by its share.
    """
    if kind is None:
        return draw_scene_with_kind(rng, size_hw)[0]
    if kind not in _SCENES:
        raise ValueError(f"kind must be one of {', '.join(SCENE_KINDS)}, got {kind!r}")
    h, w = size_hw
    if min(h, w) < 16:
        raise ValueError(f"size_hw must be at least (16, 16), got {size_hw}")
    fine = _sharpness(rng, max(h, w))
    image = _SCENES[kind][0](rng, max(16, round(h * fine)), max(16, round(w * fine)))
    image = exposed(rng, image)
    if image.shape[:2] != (h, w):
        image = cv2.resize(image, (w, h), interpolation=cv2.INTER_CUBIC)
    return recorded(rng, image)


def draw_scene_with_kind(rng: np.random.Generator, size_hw: tuple[int, int]) -> tuple[Rgb, str]:
    """A scene and its kind; those of HARD_NEGATIVE_KINDS have words of their own, which are no watermark."""
    kind = SCENE_KINDS[min(int(np.searchsorted(_REACH, rng.random())), len(SCENE_KINDS) - 1)]
    return draw_scene(rng, size_hw, kind), kind


def _sharpness(rng: np.random.Generator, side: int) -> float:
    # Large photographs are rarely sharp to the pixel, and what is drawn smaller is drawn faster.
    return 1.0 if side <= 192 or rng.random() < 0.3 else rng.uniform(0.55, 0.95)


def _skins(rng: np.random.Generator, h: int, w: int, count: int = 2) -> list[Rgb]:
    return [lit(rng, draw_texture(rng, h, w), 0.45) for _ in range(count)]


def _dead_leaves(rng: np.random.Generator, h: int, w: int) -> Rgb:
    skins = _skins(rng, h, w)
    image = skins[0].copy()
    add_things(rng, image, skins, int(rng.integers(3, 9)), 0.25, 0.7)
    add_things(rng, image, skins, int(rng.integers(6, 22)), 0.04, 0.3)
    if rng.random() < 0.15:
        add_branches(rng, image)
    add_litter(rng, image, int(rng.integers(0, 20)))
    return image


def _fractal_noise(rng: np.random.Generator, h: int, w: int) -> Rgb:
    image = draw_texture(rng, h, w)
    if rng.random() < 0.6:
        edge = octaves(rng, h, w, roughness=rng.uniform(0.3, 0.6), coarsest=int(rng.integers(2, 5)))
        pasted(image, draw_texture(rng, h, w), as_mask(edge, (1, 8, 60)[rng.integers(3)]))
    return lit(rng, image, 0.35)


def _gradients(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """Walls and skies with soft lights, sometimes with discs of lights out of focus."""
    image = smooth_tints(rng, h, w, int(rng.integers(2, 5)))
    for tint in draw_tints(rng, int(rng.integers(0, 4))):
        glow = cv2.resize(rng.random((3, 3), np.float32) ** 3, (w, h), interpolation=cv2.INTER_LINEAR)
        pasted(image, flat(image, tuple(tint.tolist())), as_mask(glow, 0.8, -0.5))
    if rng.random() < 0.5:
        _bokeh(rng, image)
    if rng.random() < 0.3:
        add_litter(rng, image, 3)
    return image


def _bokeh(rng: np.random.Generator, image: Rgb) -> None:
    h, w = image.shape[:2]
    layer, largest = image.copy(), min(h, w) * rng.uniform(0.03, 0.15)
    for tint in draw_tints(rng, int(rng.integers(3, 20))).tolist():
        x, y, r = rng.random(3).tolist()
        cv2.circle(layer, (int(x * w), int(y * h)), max(1, int(largest * (0.3 + r))), tint, -1, cv2.LINE_AA)
    share = rng.uniform(0.2, 0.8)
    cv2.addWeighted(layer, share, image, 1 - share, 0, dst=image)


def _hung(rng: np.random.Generator, image: Rgb, face: Rgb, corners: Points) -> None:
    """Puts a flat picture into the scene with its corners where asked, lit by the place."""
    h, w = image.shape[:2]
    left, top = np.maximum(np.floor(corners.min(0)).astype(int) - 1, 0).tolist()
    right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int) + 2, [w, h]).tolist()
    if right - left < 2 or bottom - top < 2:
        return
    corners = corners - [left, top]
    fh, fw = face.shape[:2]
    source = np.array([[0, 0], [fw, 0], [fw, fh], [0, fh]], np.float32)
    warp = cv2.getPerspectiveTransform(source, corners.astype(np.float32))
    size = (right - left, bottom - top)
    seen = cv2.warpPerspective(lit(rng, face, 0.3), warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    mask = np.zeros(seen.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, np.round(corners * 16).astype(np.int32), 255, cv2.LINE_AA, 4)
    pasted(image, seen, mask, top, left)


def _shapes(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """Rooms and streets: textured planes that meet in corners, with grids, poles and cables."""
    image, size = smooth_tints(rng, h, w), np.array([w, h])
    hub = size * rng.uniform(0.2, 0.8, 2)
    far, near = SQUARE * size * rng.uniform(0.05, 0.35, 2) + hub, SQUARE * size * rng.uniform(0.7, 1.2) + hub
    faces = [draw_texture(rng, max(16, h // 2), max(16, w // 2)), tiles(rng, max(16, h // 2), max(16, w // 2))]
    for k in range(4):
        if rng.random() < 0.8:
            quad = np.stack([far[k], far[(k + 1) % 4], near[(k + 1) % 4], near[k]])
            _hung(rng, image, faces[rng.integers(2)], quad)
    if rng.random() < 0.4:
        _hung(rng, image, faces[0], far)
    for tint in draw_tints(rng, int(rng.integers(0, 8))).tolist():
        a, b = (rng.uniform(-0.1, 1.1, (2, 2)) * size).astype(int).tolist()
        cv2.line(image, a, b, tint, max(1, round(min(h, w) * rng.exponential(0.012))), cv2.LINE_AA)
    add_things(rng, image, [image[::-1].copy()], int(rng.integers(0, 7)), 0.04, 0.3)
    return detailed(rng, image)


def _ridge(rng: np.random.Generator, w: int, height: float, base: float) -> Points:
    """A random walk across the picture, smoothed at random: dunes, hills, roofs, tree tops."""
    walk: Points = np.cumsum(rng.standard_normal(w + 1, np.float32))
    walk -= np.linspace(0, walk[-1] * rng.random(), w + 1, dtype=np.float32)
    smooth = int(w * 0.12 * rng.random() ** 2) + 1
    walk = np.convolve(np.pad(walk, smooth, mode="edge"), np.ones(smooth) / smooth, mode="same")[smooth : smooth + w]
    walk = (walk - walk.mean()) / (np.abs(walk - walk.mean()).max() + 1e-6)
    return (walk * height + base).astype(np.float32)


def _landscape(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """Sky, ridges behind each other that are hazier with distance, and ground."""
    sky = draw_tints(rng, 2) * [[0.4], [0.3]] + [[80, 110, 140], [150, 160, 170]]
    image = cv2.resize(sky[:, None].astype(np.float32).clip(0, 255), (w, h)).astype(np.uint8)
    if rng.random() < 0.5:
        cloud = octaves(rng, h, w, roughness=0.55, coarsest=3)
        pasted(image, flat(image, (float(rng.integers(170, 256)),) * 3), as_mask(cloud, 2.0, -rng.uniform(0.2, 1.2)))
    haze, skins = flat(image, tuple(image[h // 2, w // 2].tolist())), _skins(rng, h, w)
    count, line = int(rng.integers(1, 4)), rng.uniform(0.2, 0.6)
    rows = np.arange(h, dtype=np.float32)[:, None]
    for k in range(count):
        clear = (k + 1) / count
        skin = cv2.addWeighted(skins[k % 2], clear, haze, 1 - clear, 0)
        below = rows - _ridge(rng, w, h * rng.uniform(0.01, 0.15), line * h)[None]
        pasted(image, skin, as_mask(below, 1.0))
        line = min(0.95, line + rng.uniform(0.08, 0.25))
    add_things(rng, image, skins, int(rng.integers(0, 7)), 0.03, 0.25)
    if rng.random() < 0.35:
        add_figure(
            rng, image, skins, rng.uniform(0, w), rng.uniform(line * 0.7, 1) * h, min(h, w) * rng.uniform(0.05, 0.25)
        )
    if rng.random() < 0.3:
        add_branches(rng, image)
    add_litter(rng, image, int(rng.integers(0, 16)), line * 0.8)
    result: Rgb = image
    return result


def _things(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """A few large things before a background that is out of focus or bare."""
    small_h, small_w = max(16, h // 3), max(16, w // 3)
    back = _dead_leaves(rng, small_h, small_w) if rng.random() < 0.5 else draw_texture(rng, small_h, small_w)
    reach = max(1, round(min(small_h, small_w) * rng.uniform(0.02, 0.2)))
    image = cv2.resize(cv2.blur(cv2.blur(back, (reach, reach)), (reach, reach)), (w, h), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.25:
        image = cv2.addWeighted(image, 0.15, image, 0, (0, 20, 210)[rng.integers(3)])
    skins, centre = _skins(rng, h, w), rng.uniform(0.3, 0.7, 2)
    for _ in range(int(rng.integers(1, 6))):
        x, y = ((centre + rng.normal(0, 0.13, 2)) * [w, h]).tolist()
        put = add_figure if rng.random() < 0.4 else add_thing
        put(rng, image, skins, x, y, min(h, w) * rng.uniform(0.05, 0.35))
    add_litter(rng, image, int(rng.integers(0, 4)))
    result: Rgb = image
    return result


def _mixture(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """Parts of two other scenes side by side and over each other."""
    first, second = rng.integers(0, len(_PLAIN), 2).tolist()
    image, other = _PLAIN[first](rng, h, w), _PLAIN[second](rng, h, w)
    if rng.random() < 0.4:
        edge = octaves(rng, h, w, roughness=0.35, coarsest=2)
        pasted(image, other, as_mask(edge, (8, 60)[rng.integers(2)]))
    else:
        add_things(rng, image, [other, lit(rng, other)], int(rng.integers(2, 9)), 0.1, 0.5)
    result: Rgb = image
    return result


def _signs(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """Any scene with boards, posters or shop signs in it."""
    image = _PLAIN[rng.integers(len(_PLAIN))](rng, h, w)
    for _ in range((1, 1, 2, 3)[rng.integers(4)]):
        high, wide = max(12, round(h * rng.uniform(0.15, 0.6))), max(16, round(w * rng.uniform(0.3, 0.9)))
        corners = SQUARE * [wide / 2, high / 2] + rng.uniform(-0.14, 0.14, (4, 2)) * min(high, wide)
        turn = rng.normal(0, 0.12)
        spin = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        corners = corners @ spin + rng.uniform(0.1, 0.9, 2) * [w, h]
        _hung(rng, image, draw_panel(rng, high, wide), corners)
    add_litter(rng, image, int(rng.integers(0, 3)))
    return lit(rng, image, 0.2)


def _pages(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """Printed paper, filling the picture or lying on something."""
    page = draw_page(rng, h, w)
    if rng.random() < 0.6:
        return lit(rng, page, 0.12)
    image = draw_texture(rng, h, w)
    corners = SQUARE * [w * rng.uniform(0.35, 0.6), h * rng.uniform(0.35, 0.6)]
    _hung(rng, image, page, corners + rng.uniform(-0.1, 0.1, (4, 2)) * [w, h] + [w / 2, h / 2])
    return image


_PLAIN: tuple[Scene, ...] = (_dead_leaves, _fractal_noise, _gradients, _shapes, _landscape, _things)
_SCENES: dict[str, tuple[Scene, float]] = {
    "dead_leaves": (_dead_leaves, 0.2),
    "fractal_noise": (_fractal_noise, 0.1),
    "gradients": (_gradients, 0.07),
    "shapes": (_shapes, 0.11),
    "landscape": (_landscape, 0.13),
    "things": (_things, 0.15),
    "mixture": (_mixture, 0.1),
    "signs": (_signs, 0.1),
    "pages": (_pages, 0.04),
}
SCENE_KINDS = tuple(_SCENES)
HARD_NEGATIVE_KINDS = ("signs", "pages")
_REACH = np.cumsum([share for _, share in _SCENES.values()])
