"""Textures, light and camera that drawn scenes share; pictures are uint8 RGB between all steps."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Rgb = NDArray[np.uint8]
Field = NDArray[np.floating[Any]]
_T = TypeVar("_T", bound=np.generic)
Texture = Callable[[np.random.Generator, int, int], Rgb]

# Drawing half a million normal numbers costs more than all the rest of a scene, so scenes cut windows from tables.
_TABLE_SEED, _TABLE_SIDE = 20240229, 1024


@lru_cache(maxsize=1)
def _white_table() -> Field:
    return np.random.default_rng(_TABLE_SEED).standard_normal((_TABLE_SIDE, _TABLE_SIDE), np.float32)


@lru_cache(maxsize=2)
def _noise_table(coloured_noise: bool) -> Rgb:
    """Noise around 128 with a deviation of 32, the same in all channels or not."""
    white = _white_table()
    planes = [white, white[::-1], white[:, ::-1]] if coloured_noise else [white] * 3
    result: Rgb = np.clip(cv2.merge([plane * 32 + 128 for plane in planes]), 0, 255).astype(np.uint8)
    return result


@lru_cache(maxsize=4)
def _detail_table(roughness: float) -> Rgb:
    """Fine structure of materials around 128: only scales below a twentieth of a small picture."""
    rng = np.random.default_rng(_TABLE_SEED + 3)
    field = octaves(rng, _TABLE_SIDE, _TABLE_SIDE, roughness=roughness, coarsest=90)
    result: Rgb = cv2.merge([as_mask(field, 0.25)] * 3)
    return result


@lru_cache(maxsize=1)
def _tint_table() -> Field:
    rng = np.random.default_rng(_TABLE_SEED + 1)
    return np.concatenate([_new_tint(rng) for _ in range(4096)])


@lru_cache(maxsize=1)
def _ramp_table() -> Rgb:
    rng = np.random.default_rng(_TABLE_SEED + 2)
    return np.stack([_new_ramp(rng) for _ in range(768)])


def _window(rng: np.random.Generator, table: NDArray[_T], h: int, w: int) -> NDArray[_T]:
    rows, columns = table.shape[:2]
    if h > rows or w > columns:
        table = np.tile(table, (-(-h // rows) + 1, -(-w // columns) + 1) + (1,) * (table.ndim - 2))
    y, x = int(rng.integers(table.shape[0] - h + 1)), int(rng.integers(table.shape[1] - w + 1))
    return table[y : y + h, x : x + w]


def octaves(rng: np.random.Generator, h: int, w: int, *, roughness: float = 0.5, coarsest: int = 4) -> Field:
    """Noise with energy at all scales, zero mean, deviation about 0.5.

    Args:
        rng: the source of chance.
        h: rows of the result.
        w: columns of the result.
        roughness: amplitude of an octave over that of the next coarser one; 0.5 gives a spectrum of 1/f².
        coarsest: cells of the coarsest octave across the shorter side.
    """
    scale = coarsest / min(h, w)
    field = rng.standard_normal((max(2, round(h * scale)), max(2, round(w * scale))), np.float32)
    amplitude, total = 1.0, 1.0
    while field.shape[0] < h or field.shape[1] < w:
        rows, columns = min(h, field.shape[0] * 2), min(w, field.shape[1] * 2)
        smooth = cv2.INTER_CUBIC if rows < 64 else cv2.INTER_LINEAR
        field = cv2.resize(field, (columns, rows), interpolation=smooth)
        amplitude *= roughness
        total += amplitude**2
        if amplitude > 0.01:
            field = cv2.scaleAdd(_window(rng, _white_table(), rows, columns), amplitude, field)
    return field * np.float32(0.5 / math.sqrt(total))


def as_mask(field: Field, gain: float, offset: float = 0.0) -> Rgb:
    """A field as an opacity: 0 is half covered, and a large gain makes the edge hard."""
    result: Rgb = cv2.addWeighted(field, gain * 255, field, 0, (offset + 0.5) * 255, dtype=cv2.CV_8U)
    return result


def _new_tint(rng: np.random.Generator) -> Field:
    """A colour with the frequencies of photographs: earthy, dull and dark more often than vivid."""
    kind = rng.random()
    if kind < 0.2:
        hue, saturation = 0.0, rng.uniform(0, 0.08)
    elif kind < 0.55:
        hue, saturation = rng.normal(32, 14) % 360, rng.uniform(0.1, 0.7)
    elif kind < 0.7:
        hue, saturation = rng.normal(95, 20), rng.uniform(0.15, 0.7)
    elif kind < 0.85:
        hue, saturation = rng.normal(212, 15), rng.uniform(0.1, 0.7)
    else:
        hue, saturation = rng.uniform(0, 360), rng.uniform(0.4, 1)
    hsv = np.array([[[hue, saturation, rng.beta(1.6, 1.5)]]], np.float32)
    result: Field = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0] * 255
    return result


def _new_ramp(rng: np.random.Generator) -> Rgb:
    count, base, spread = int(rng.integers(2, 6)), _new_tint(rng), rng.uniform(0.05, 0.8)
    keys = np.concatenate([base * (1 - spread) + _new_tint(rng) * spread for _ in range(count)])
    keys = np.clip(keys * np.linspace(rng.uniform(0.3, 0.9), rng.uniform(1.0, 1.7), count)[:, None], 0, 255)
    at = np.sort(np.append(rng.uniform(30, 225, count - 2), [0, 255]))
    return np.stack([np.interp(np.arange(256), at, keys[:, c]) for c in range(3)], -1).astype(np.uint8)[:, None]


def draw_tints(rng: np.random.Generator, count: int) -> Field:
    """Colours (count, 3) from 0 to 255, as frequent as in photographs."""
    table = _tint_table()
    return table[rng.integers(0, len(table), count)]


def draw_tint(rng: np.random.Generator) -> tuple[float, float, float]:
    """One such colour, in the form that OpenCV's drawing calls take."""
    red, green, blue = draw_tints(rng, 1)[0].tolist()
    return red, green, blue


def draw_ramp(rng: np.random.Generator) -> Rgb:
    """A colour table (256, 1, 3) through related tints, mostly from dark to bright."""
    table = _ramp_table()
    result: Rgb = table[rng.integers(len(table))]
    return result


def coloured(field: Field, ramp: Rgb, gain: float = 1.0) -> Rgb:
    """A scalar field about [-1, 1] looked up in a colour table."""
    result: Rgb = cv2.applyColorMap(as_mask(field, gain * 0.5), ramp)
    return result


def smooth_tints(rng: np.random.Generator, h: int, w: int, cells: int = 2) -> Rgb:
    """A few tints blended over the whole picture."""
    tints, mix = draw_tints(rng, cells * cells), rng.uniform(0.1, 0.9)
    grid = (tints[:1] * (1 - mix) + tints * mix).reshape(cells, cells, 3)
    # Cubic, since creases between linear patches look like edges; it overshoots a little.
    result: Rgb = cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    return result


def _cloudy(rng: np.random.Generator, h: int, w: int) -> Rgb:
    field = octaves(rng, h, w, roughness=rng.uniform(0.5, 0.95), coarsest=int(rng.integers(2, 12)))
    kind = rng.random()
    if kind < 0.2:
        field = 0.7 - 2 * np.abs(field)
    elif kind < 0.35:
        field = np.sin(field * rng.uniform(4, 12))
    return coloured(field, draw_ramp(rng), rng.uniform(0.5, 1.6))


def _fibres(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """Noise stretched along one direction: wood, hair, brushed metal, water."""
    stretch = int(rng.integers(4, 24))
    rows, columns = (h, max(4, w // stretch)) if rng.random() < 0.5 else (max(4, h // stretch), w)
    field = octaves(rng, rows, columns, roughness=rng.uniform(0.5, 0.9), coarsest=4)
    return coloured(cv2.resize(field, (w, h)), draw_ramp(rng), rng.uniform(0.4, 1.3))


def _bands(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """Wavy stripes: dunes, fabric, fur, fences."""
    angle, count = rng.uniform(0, math.pi), rng.uniform(3, 30) * 2 * math.pi
    x = np.linspace(0, count * math.cos(angle), w, dtype=np.float32)
    y = np.linspace(0, count * math.sin(angle), h, dtype=np.float32)[:, None]
    field = np.sin(octaves(rng, h, w, coarsest=3) * np.float32((1, 5, 20)[rng.integers(3)]) + x + y)
    return coloured(field, draw_ramp(rng), 4.0 if rng.random() < 0.3 else rng.uniform(0.3, 1))


def _cells(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """Pebbles, scales, cobbles, cracked earth: cells around random seeds, darker at their borders."""
    rows, columns, count = max(8, h // 2), max(8, w // 2), int(rng.integers(20, 700))
    seeds = np.full((rows, columns), 255, np.uint8)
    seeds[rng.integers(0, rows, count), rng.integers(0, columns, count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_CCOMP)
    tone = (rng.standard_normal(count + 2, np.float32) * np.float32(rng.uniform(0.15, 0.6)))[labels]
    depth = rng.uniform(-0.3, 1.2)
    tone -= (distance / np.float32(math.sqrt(rows * columns / count) * 0.6) - np.float32(0.4)) * np.float32(depth)
    result: Rgb = cv2.resize(coloured(tone, draw_ramp(rng)), (w, h), interpolation=cv2.INTER_LINEAR)
    return result


def tiles(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """Bricks, paving, facades with windows, chequers: a grid of cells with joints."""
    rows, columns = int(rng.integers(3, 24)), int(rng.integers(3, 24))
    cell_h, cell_w = max(2, -(-h // rows)), max(2, -(-w // columns))
    (base, joint, other), spread = draw_tints(rng, 3), (3, 10, 30)[rng.integers(3)]
    tones = base + rng.normal(0, spread, (rows, columns, 1)) + rng.normal(0, spread / 4, (rows, columns, 3))
    if rng.random() < 0.3:
        tones[rng.random((rows, columns)) < 0.5] = other
    inset = rng.uniform(0.02, 0.3)
    gap_y, gap_x = max(1, round(cell_h * inset)), max(1, round(cell_w * inset))
    image = np.repeat(np.repeat(tones.clip(0, 255).astype(np.uint8), cell_h, 0), cell_w, 1)
    lattice = image.reshape(rows, cell_h, columns, cell_w, 3)
    lattice[:, :gap_y], lattice[:, :, :, :gap_x] = joint, joint
    if rng.random() < 0.5:
        shifted = image.reshape(rows, cell_h, columns * cell_w, 3)
        shifted[1::2] = np.roll(shifted[1::2], cell_w // 2, 2)
    return np.ascontiguousarray(image[:h, :w])


def _blades(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """Grass, twigs, straw: many thin lines of a few tints over a ground."""
    image, ramp = smooth_tints(rng, h, w), draw_ramp(rng)
    each, length = int(rng.integers(10, 48)), min(h, w) * rng.uniform(0.06, 0.5)
    turn, spread = rng.uniform(0, 6.28), (0.2, 0.6, 3)[rng.integers(3)]
    angle = turn + rng.normal(0, spread, (6, each, 1))
    step = np.stack([np.cos(angle), np.sin(angle)], -1) * length / 2
    start = rng.uniform(-0.05, 1.05, (6, each, 1, 2)) * [w, h]
    bend = rng.normal(0, length / 8, (6, each, 1, 2))
    lines = (np.concatenate([start, start + step + bend, start + 2 * step], 2) * 8).astype(np.int32)
    thick = int(rng.integers(1, 2 + max(h, w) // 160))
    for tint, bundle in zip(ramp[rng.integers(0, 256, 6), 0].tolist(), lines, strict=True):
        cv2.polylines(image, list(bundle), False, tint, thick, cv2.LINE_AA, 3)
    return image


def _spots(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """Petals, berries, foam, lights: many small discs, the later over the earlier."""
    image, ramp = smooth_tints(rng, h, w), draw_ramp(rng)
    count, largest = int(rng.integers(20, 90)), min(h, w) * rng.uniform(0.02, 0.15)
    at = (rng.random((count, 2)) * [w * 16, h * 16]).astype(int).tolist()
    radii = (rng.uniform(0.2, 1, count) * largest * 16 + 8).astype(int).tolist()
    for centre, radius, tint in zip(at, radii, ramp[rng.integers(0, 256, count), 0].tolist(), strict=True):
        cv2.circle(image, centre, radius, tint, -1, cv2.LINE_AA, 4)
    return image


def _plain(rng: np.random.Generator, h: int, w: int) -> Rgb:
    return smooth_tints(rng, h, w, int(rng.integers(2, 4)))


_TEXTURES: tuple[Texture, ...] = (_cloudy, _fibres, _bands, _cells, tiles, _blades, _spots, _plain)
_TEXTURE_REACH = np.cumsum((0.36, 0.13, 0.06, 0.1, 0.05, 0.12, 0.08, 0.1))


def draw_texture(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """A whole picture of one material."""
    choice = min(int(np.searchsorted(_TEXTURE_REACH, rng.random())), len(_TEXTURES) - 1)
    return detailed(rng, _TEXTURES[choice](rng, h, w))


def detailed(rng: np.random.Generator, image: Rgb) -> Rgb:
    """The picture with the fine structure that hardly any real surface lacks."""
    table = _detail_table((0.65, 0.8, 1.0)[rng.integers(3)])
    share = float(rng.exponential(0.45))
    result: Rgb = cv2.addWeighted(image, 1.0, _window(rng, table, *image.shape[:2]), share, -128 * share)
    return result


def lit(rng: np.random.Generator, image: Rgb, strength: float = 0.5) -> Rgb:
    """The picture under light that changes smoothly across it, in brightness and a little in colour."""
    rows, columns = 2 + int(rng.random() < 0.5), 2 + int(rng.random() < 0.5)
    light: Field = rng.standard_normal((rows, columns, 1), np.float32) * np.float32(strength)
    light = np.exp(light + rng.standard_normal((rows, columns, 3), np.float32) * np.float32(strength * 0.12))
    light /= light.mean()
    smooth = cv2.resize(light, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
    result: Rgb = cv2.multiply(image, smooth, dtype=cv2.CV_8U)
    return result


def dappled(rng: np.random.Generator, image: Rgb) -> Rgb:
    """The picture with soft cast shadows, as of trees, crowds and window frames."""
    h, w = image.shape[:2]
    field = octaves(rng, h, w, roughness=0.25, coarsest=int(rng.integers(2, 9)))
    shade = as_mask(field, rng.uniform(0.8, 3), rng.uniform(0, 0.5))
    floor = rng.uniform(0.3, 0.7)
    shade = cv2.addWeighted(shade, 1 - floor, shade, 0, 255 * floor)
    result: Rgb = cv2.multiply(image, cv2.merge([shade] * 3), scale=1 / 255)
    return result


def pasted(image: Rgb, over: Rgb, mask: Rgb, y: int = 0, x: int = 0) -> None:
    """Draws `over` into `image` at a corner, as far as both reach, as opaque as the mask says."""
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + mask.shape[0], image.shape[0]), min(x + mask.shape[1], image.shape[1])
    if bottom <= top or right <= left:
        return
    window, inside = image[top:bottom, left:right], np.s_[top - y : bottom - y, left - x : right - x]
    cover = mask[inside].astype(np.float32) * np.float32(1 / 255)
    window[:] = cv2.blendLinear(over[inside], window, cover, 1 - cover)


def flat(image: Rgb, tint: tuple[float, float, float]) -> Rgb:
    """A picture of one tint, as large as another."""
    out = np.empty_like(image)
    out[:] = tint
    return out


def _tone_table(rng: np.random.Generator, image: Rgb) -> Rgb:
    """Exposure and contrast as one table: as a camera would choose them, then a little wrong, with soft ends."""
    thumb = image[::4, ::4]
    mean, spread = float(thumb.mean()), float(thumb.std()) + 4
    gain = min(2.6, max(0.7, rng.uniform(34, 88) / spread))
    level = (np.arange(256) - mean) * gain + rng.normal(112, 30)
    shoulder = rng.uniform(1, 15)
    level = shoulder * np.logaddexp(0, level / shoulder)
    level = 255 - shoulder * np.logaddexp(0, (255 - level) / shoulder)
    result: Rgb = level.clip(0, 255).astype(np.uint8)
    return result


def _colour_matrix(rng: np.random.Generator) -> Field:
    """White balance and saturation as one 3x4 matrix; one picture in twenty-five is grey."""
    balance = np.exp(rng.standard_normal(3) * 0.07)
    kind = rng.random()
    saturation = 0.0 if kind < 0.04 else rng.uniform(0.5, 2.0)
    grey = np.array([0.299, 0.587, 0.114]) * (1 - saturation)
    matrix = np.zeros((3, 4))
    matrix[:, :3] = (np.eye(3) * saturation + grey) * (balance[:, None] if kind >= 0.02 else 1)
    return matrix


def _vignetted(image: Rgb, strength: float) -> Rgb:
    h, w = image.shape[:2]
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None] ** 2
    x = np.linspace(-1, 1, w, dtype=np.float32)[None] ** 2
    shade = (255 - (x + y) * np.float32(strength * 127)).astype(np.uint8)
    result: Rgb = cv2.multiply(image, cv2.merge([shade] * 3), scale=1 / 255)
    return result


def exposed(rng: np.random.Generator, image: Rgb) -> Rgb:
    """The scene behind a lens: blur, tone, colour cast, vignette."""
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.8) if rng.random() < 0.85 else rng.uniform(1, 2))
    if rng.random() < 0.15:
        image = dappled(rng, image)
    image = cv2.transform(cv2.LUT(image, _tone_table(rng, image)), _colour_matrix(rng))
    return _vignetted(image, rng.uniform(0.1, 0.6)) if rng.random() < 0.35 else image


def _unpacked(packed: NDArray[np.uint8]) -> Rgb:
    return np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)


def recorded(rng: np.random.Generator, image: Rgb) -> Rgb:
    """The picture as the sensor and the file keep it: noise, sometimes JPEG."""
    h, w = image.shape[:2]
    if rng.random() < 0.6:
        share = min(12.0, rng.exponential(2.5) + 0.5) / 32
        noise = _window(rng, _noise_table(bool(rng.random() < 0.5)), h, w)
        image = cv2.addWeighted(image, 1.0, noise, share, -128 * share)
    if rng.random() < 0.2:
        packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 96))])[1]
        image = _unpacked(packed)
    return image
