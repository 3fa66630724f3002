"""What a similarity map says in words and pictures: its peaks, their periods, and which crops drove the score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lightning_modules.functional.spectrum import frequency_axes, mirrored

Map = NDArray[np.float64]
Picture = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""

JPEG_BLOCK = 8
_PATCH = 3  # bins a side that count as one peak: without a window function a line leaks into its neighbours
_SURROUNDINGS = 11
_TICKS = (-0.5, -0.375, -0.25, -0.125, 0.0, 0.125, 0.25, 0.375, 0.5)
_INK, _PAPER, _GRID, _ALARM = (32, 32, 40), (255, 255, 255), (110, 110, 120), (255, 140, 0)
_MAP_SIDE = 480
_LEFT, _TOP, _RIGHT, _BOTTOM = 66, 74, 104, 52
_CROPS_SIDE = 768


@dataclass(frozen=True)
class Peak:
    """A frequency at which the image resembles the reference more than around it, and its mirror image."""

    frequency_xy: tuple[float, float]
    """Cycles a pixel; of the two mirrored frequencies the one that points to the right, or straight down."""
    period_xy: tuple[float | None, float | None]
    """Pixels along x and along y; None where nothing changes along that axis."""
    period: float
    """Pixels along the direction in which the pattern changes."""
    direction_deg: float
    """Of that change, from the x axis towards the bottom of the image, in (-90, 90]."""
    share: float
    """Part of all similarity above zero that lies in the peak and its mirror image, 0 to 1."""
    strength: float
    """Height over the surroundings in robust standard deviations of the whole map."""
    on_jpeg_grid: bool
    """Whether both frequencies are multiples of 1/8 to within half a bin."""

    def record(self) -> dict[str, Any]:
        """Return what goes into a line of JSON, rounded to what the bins can tell."""
        return {key: _rounded(value) for key, value in asdict(self).items()}


def mean_map(similarity: NDArray[Any]) -> Map:
    """Return the (h, w) mean over the channels of a similarity map (C, h, w), zero frequency at (h//2, w//2)."""
    mean: Map = np.asarray(similarity, np.float64).mean(axis=0)
    return mean


def find_peaks(similarity: Map, count: int = 5, min_strength: float = 5.0, dc_radius: float = 0.03) -> list[Peak]:
    """Return the strongest local maxima, one of each mirrored pair, the strongest first.

    Ranked by what stands out of the surroundings, not by height: spectra and references both fall off smoothly from
    the zero frequency, and that slope has its own, broad share in every similarity.

    Args:
        similarity: A map (h, w) in fftshift layout.
        count: Peaks at most.
        min_strength: Weaker ones are noise: of 100,000 normal bins one exceeds 4.3.
        dc_radius: Cycles a pixel around the zero frequency that are left out: brightness and large shapes.
    """
    paired = similarity + _mirrored(similarity)
    patches = _box_sum(paired, _PATCH)
    excess = patches - _surroundings(patches)
    spread = 1.4826 * float(np.median(np.abs(excess - np.median(excess))))
    fy, fx = _axes(similarity.shape)
    # Mirrored places and neighbours share a peak, up to rounding: which of them is found must not matter.
    highest = _wrapped_dilation(excess, 5) <= excess + 1e-6 * spread
    tops = np.flatnonzero(highest & (np.hypot(fx, fy) > dc_radius) & (excess > min_strength * spread))
    best = tops[np.argsort(-excess.flat[tops], kind="stable")]
    evidence = _box_sum(np.maximum(similarity, 0), _PATCH)
    evidence = (evidence + _mirrored(evidence)) / max(float(np.maximum(similarity, 0).sum()), 1e-300)
    peaks: list[Peak] = []
    for place in best:
        row, column = _finest(paired, *divmod(int(place), similarity.shape[1]))
        peak = _peak(row, column, similarity.shape, float(evidence.flat[place]), float(excess.flat[place] / spread))
        if all(peak.frequency_xy != other.frequency_xy for other in peaks):
            peaks.append(peak)
        if len(peaks) == count:
            break
    return peaks


def jpeg_grid_warning(peaks: Sequence[Peak]) -> str | None:
    """Return a sentence where peaks lie on the grid that JPEG leaves behind, else None."""
    alike = sum(peak.on_jpeg_grid for peak in peaks)
    if not alike:
        return None
    return (
        f"{alike} of {len(peaks)} peaks lie on the 8-pixel grid of JPEG blocks: an earlier save as JPEG leaves the "
        "same trace as a generator that works in 8-pixel cells"
    )


def dilate(similarity: Map, size: int) -> Map:
    """Return the largest value in ``size`` × ``size`` bins around each; 1 changes nothing."""
    return similarity if size <= 1 else cv2.dilate(similarity, np.ones((size, size), np.uint8))


def draw_map(similarity: Map, title: str, subtitle: str = "", peaks: Sequence[Peak] = (), dilation: int = 5) -> Picture:
    """Return a picture of the map with frequency axes, periods, a colour bar and its peaks numbered.

    Downwards in the map is downwards in the image. Peaks on the JPEG grid are orange.
    """
    shown = dilate(similarity, dilation)
    low, high = (float(v) for v in np.quantile(shown, (0.02, 0.9995)))
    high = high if high > low else low + 1e-12
    height, width = (_drawn_side(side) for side in similarity.shape)
    levels = np.round(np.clip((shown - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    colours = np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1])
    colours = cv2.resize(colours, (width, height), interpolation=cv2.INTER_NEAREST)
    canvas = Image.new("RGB", (_LEFT + width + _RIGHT, _TOP + height + _BOTTOM), _PAPER)
    canvas.paste(Image.fromarray(colours), (_LEFT, _TOP))
    draw = ImageDraw.Draw(canvas)
    draw.text((_LEFT, 8), title, _INK, _font(17))
    draw.text((_LEFT, 30), subtitle, _GRID, _font(12))
    _draw_axes(draw, canvas, width, height)
    _draw_bar(draw, canvas, low, high, _LEFT + width + 34, height)
    for number, peak in enumerate(peaks, start=1):
        _draw_peak(draw, peak, number, width, height)
    return np.asarray(canvas).copy()


def draw_crops(image: Picture, boxes: Sequence[Box], logits: Sequence[float], title: str) -> Picture:
    """Return the image, reduced, under crops tinted from blue (speaks against) over none to red (speaks for)."""
    scale = min(1.0, _CROPS_SIDE / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    picture = Image.fromarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA)).convert("L").convert("RGB")
    tint = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(tint)
    for box, logit in zip(boxes, logits, strict=True):
        left, top, right, bottom = (round(v * scale) for v in box)
        share = math.tanh(logit / 2)  # 2·probability − 1
        colour = (214, 39, 40) if share > 0 else (31, 98, 180)
        draw.rectangle((left, top, right - 1, bottom - 1), (*colour, round(130 * abs(share))), (*colour, 255), 2)
        draw.text((left + 6, top + 4), f"{logit:+.1f}", (255, 255, 255), _font(14), stroke_width=2, stroke_fill=_INK)
    framed = Image.new("RGB", (max(size[0], 320), size[1] + 28), _PAPER)
    framed.paste(Image.alpha_composite(picture.convert("RGBA"), tint).convert("RGB"), (0, 28))
    ImageDraw.Draw(framed).text((6, 6), title, _INK, _font(13))
    return np.asarray(framed).copy()


def summary(peaks: Sequence[Peak], names: Mapping[str, float]) -> str:
    """Return one line: the scores, and the period of the strongest peak."""
    scores = ", ".join(f"{name} {value:.3g}" for name, value in names.items())
    return f"{scores}; strongest period {peaks[0].period:.2f} px" if peaks else f"{scores}; no peak stands out"


def _axes(shape: tuple[int, ...]) -> tuple[Map, Map]:
    """Return the frequencies of the rows, (h, 1), and of the columns, (1, w), in cycles a pixel."""
    rows, columns = (axis.numpy() for axis in frequency_axes(*shape))
    return rows[:, None], columns[None, :]


def _mirrored(values: Map) -> Map:
    flipped: Map = mirrored(torch.from_numpy(values)).numpy()
    return flipped


def _peak(row: int, column: int, shape: tuple[int, ...], share: float, strength: float) -> Peak:
    fy, fx = (float(axis.flat[place]) for axis, place in zip(_axes(shape), (row, column), strict=True))
    fx, fy = _one_of_the_pair(fx, fy)
    return Peak(
        frequency_xy=(fx, fy),
        period_xy=(1 / abs(fx) if fx else None, 1 / abs(fy) if fy else None),
        period=1 / math.hypot(fx, fy),
        direction_deg=math.degrees(math.atan2(fy, fx)),
        share=share,
        strength=strength,
        on_jpeg_grid=_near_grid(fx, shape[1]) and _near_grid(fy, shape[0]),
    )


def _one_of_the_pair(fx: float, fy: float) -> tuple[float, float]:
    """Return the frequency or its negative: to the right; where that is the same or neither, downwards."""
    if fx < 0:
        fx, fy = -fx, -fy
    # At zero and at the highest frequency, plus and minus are one.
    if fx in (0.0, 0.5) or abs(fy) == 0.5:
        fy = abs(fy)
    return fx + 0.0, fy + 0.0  # never minus zero


def _near_grid(frequency: float, bins: int) -> bool:
    cells = JPEG_BLOCK * frequency
    return abs(cells - round(cells)) <= JPEG_BLOCK * (0.5 / bins) + 1e-9


def _finest(values: Map, row: int, column: int) -> tuple[int, int]:
    """Return the largest bin of the patch around a place."""
    reach = range(-(_PATCH // 2), _PATCH // 2 + 1)
    height, width = values.shape
    near = [((row + y) % height, (column + x) % width) for y in reach for x in reach]
    return max(near, key=lambda place: float(values[place]))


def _box_sum(values: Map, size: int) -> Map:
    """Return sums over squares; the spectrum goes on at the other side."""
    edge = size // 2
    padded = np.pad(values, edge, mode="wrap")
    summed: Map = cv2.boxFilter(padded, -1, (size, size), normalize=False)
    return summed[edge:-edge, edge:-edge]


def _surroundings(patches: Map) -> Map:
    """Return the mean of the patches around each, without those that share bins with it."""
    inner = 2 * _PATCH - 1
    around = _box_sum(patches, _SURROUNDINGS) - _box_sum(patches, inner)
    return around / (_SURROUNDINGS**2 - inner**2)


def _wrapped_dilation(values: Map, size: int) -> Map:
    edge = size // 2
    padded = np.pad(values, edge, mode="wrap")
    largest: Map = cv2.dilate(padded, np.ones((size, size), np.uint8))
    return largest[edge:-edge, edge:-edge]


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(part) for part in value]
    return round(value, 5) if isinstance(value, float) else value


def _drawn_side(bins: int) -> int:
    return bins * max(1, round(_MAP_SIDE / bins))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _draw_axes(draw: ImageDraw.ImageDraw, canvas: Image.Image, width: int, height: int) -> None:
    """Frequencies below and at the left, periods above."""
    small = _font(12)
    right, bottom = _LEFT + width, _TOP + height
    draw.rectangle((_LEFT - 1, _TOP - 1, right, bottom), outline=_INK)
    for tick in _TICKS:
        x, y = _LEFT + round((tick + 0.5) * width), _TOP + round((tick + 0.5) * height)
        draw.line((x, bottom, x, bottom + 4), _INK)
        draw.line((_LEFT - 5, y, _LEFT - 1, y), _INK)
        draw.line((x, _TOP - 5, x, _TOP - 1), _INK)
        name = f"{tick:g}"
        draw.text((x, bottom + 6), name, _INK, small, anchor="ma")
        draw.text((_LEFT - 8, y), name, _INK, small, anchor="rm")
        if tick:
            draw.text((x, _TOP - 8), f"{1 / abs(tick):.3g} px", _GRID, small, anchor="ms")
    draw.text((_LEFT + width // 2, bottom + 26), "horizontal frequency, cycles a pixel", _INK, small, anchor="ma")
    _draw_upright(canvas, "vertical frequency, cycles a pixel", (4, _TOP + height // 2), small)


def _draw_upright(canvas: Image.Image, text: str, left_middle: tuple[int, int], font: Any) -> None:
    length = math.ceil(font.getlength(text)) + 2
    strip = Image.new("RGB", (length, 18), _PAPER)
    ImageDraw.Draw(strip).text((1, 1), text, _INK, font)
    turned = strip.rotate(90, expand=True)
    canvas.paste(turned, (left_middle[0], left_middle[1] - length // 2))


def _draw_bar(draw: ImageDraw.ImageDraw, canvas: Image.Image, low: float, high: float, left: int, height: int) -> None:
    """The colours from low to high with three figures."""
    ramp = np.repeat(np.linspace(255, 0, height).round().astype(np.uint8)[:, None], 14, axis=1)
    bar = np.ascontiguousarray(cv2.applyColorMap(ramp, cv2.COLORMAP_VIRIDIS)[..., ::-1])
    canvas.paste(Image.fromarray(bar), (left, _TOP))
    draw.rectangle((left - 1, _TOP - 1, left + 14, _TOP + height), outline=_INK)
    power = math.floor(math.log10(max(abs(low), abs(high), 1e-300)))
    for value, y in ((high, _TOP), ((low + high) / 2, _TOP + height // 2), (low, _TOP + height - 1)):
        draw.text((left + 20, y), f"{value / 10**power:.2f}", _INK, _font(12), anchor="lm")
    draw.text((left - 1, _TOP + height + 6), f"in 1e{power}", _INK, _font(12), anchor="la")


def _draw_peak(draw: ImageDraw.ImageDraw, peak: Peak, number: int, width: int, height: int) -> None:
    """A ring around the peak and its mirror image, a number at the peak."""
    colour = _ALARM if peak.on_jpeg_grid else _PAPER
    fx, fy = peak.frequency_xy
    for sign in (1, -1):
        x, y = (_LEFT + (sign * fx + 0.5) * width, _TOP + (sign * fy + 0.5) * height)
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), outline=_INK, width=3)
        draw.ellipse((x - 7, y - 7, x + 7, y + 7), outline=colour, width=1)
    x, y = _LEFT + (fx + 0.5) * width, _TOP + (fy + 0.5) * height
    inward = (-11, "rm") if x > _LEFT + width - 24 else (11, "lm")
    draw.text((x + inward[0], y), str(number), colour, _font(13), anchor=inward[1], stroke_width=2, stroke_fill=_INK)
