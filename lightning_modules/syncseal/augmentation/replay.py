"""The published draws, one picture at a time and in their order, from a generator or from a record of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_modules.functional.geometry import frame_corners_px
from lightning_modules.syncseal.augmentation import quads as change
from lightning_modules.syncseal.augmentation.settings import GeometricSettings


class DrawSource(Protocol):
    """What `random.Random` offers."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return a number between two."""

    def choice(self, seq: Sequence[Any], /) -> Any:
        """Return one of several."""


class RecordedDraws:
    """Answers with recorded draws, `["uniform", a, b, answer]` or `["choice", of, answer]`, and checks what is asked.

    Args:
        draws: In the order they were made.
    """

    def __init__(self, draws: Iterable[Sequence[Any]]) -> None:
        self._draws = list(draws)[::-1]

    def uniform(self, a: float, b: float, /) -> float:
        """Return the next recorded number."""
        return float(self._next("uniform", a, b))

    def choice(self, seq: Sequence[Any], /) -> Any:
        """Return the next recorded choice."""
        return self._next("choice", seq)

    def left(self) -> int:
        """Return how many records nobody asked for."""
        return len(self._draws)

    def _next(self, kind: str, *asked: Any) -> Any:
        if not self._draws:
            raise ValueError(f"the record has ended, {kind}{asked} was asked")
        recorded, *arguments, answer = self._draws.pop()
        flat = [number for part in (asked, arguments) for item in part for number in _listed(item)]
        half = len(flat) // 2
        if recorded != kind or any(abs(a - b) > 1e-6 for a, b in zip(flat[:half], flat[half:], strict=True)):
            raise ValueError(f"the record has {recorded}{arguments}, {kind}{list(asked)} was asked")
        return answer


def replay_geometry(
    operations: Sequence[str], height: int, width: int, settings: GeometricSettings, draws: DrawSource
) -> Tensor:
    """Return the quad (4, 2) of published operations done in a row, float64.

    Args:
        operations: Of identity, crop, crop_top_left (a square, the range being one of sides), hflip, rotate,
            perspective.
        height: Of the picture.
        width: Of the picture.
        settings: Their ranges; quads are not kept convex.
        draws: Where every number comes from, asked in the published order.
    """
    quad = frame_corners_px(height, width)[None]
    for operation in operations:
        quad = _OPERATIONS[operation](quad, settings, draws)
    return quad[0]


def _crop(quad: Tensor, settings: GeometricSettings, draws: DrawSource) -> Tensor:
    room = quad.amax(1)[0] - quad.amin(1)[0]
    area = draws.uniform(*settings.crop_area)
    kept_px2 = area * float(room.prod())
    for _ in range(change.CROP_TRIES):
        aspect = draws.uniform(0.5, 2.0)
        width, height = (kept_px2 * aspect) ** 0.5, (kept_px2 / aspect) ** 0.5
        if width > float(room[0]) or height > float(room[1]):
            continue
        rectangle = _placed(quad, (width, height), draws)
        if change.contains(quad, rectangle[:, None])[0, 0]:
            return rectangle
    return _placed(quad, (kept_px2**0.5, kept_px2**0.5), draws)


def _crop_top_left(quad: Tensor, settings: GeometricSettings, draws: DrawSource) -> Tensor:
    low, room = quad.amin(1)[0], quad.amax(1)[0] - quad.amin(1)[0]
    return low + frame_corners_px(2, 2)[None] * room.min() * draws.uniform(*settings.crop_area)


def _placed(quad: Tensor, size: tuple[float, float], draws: DrawSource) -> Tensor:
    (low_x, low_y), (high_x, high_y) = quad.amin(1)[0].tolist(), quad.amax(1)[0].tolist()
    left = low_x + draws.uniform(0, high_x - low_x - size[0])
    top = low_y + draws.uniform(0, high_y - low_y - size[1])
    return frame_corners_px(2, 2)[None] * quad.new_tensor(size) + quad.new_tensor([left, top])


def _rotate(quad: Tensor, settings: GeometricSettings, draws: DrawSource) -> Tensor:
    quarters = draws.choice([-90, 0, 90]) // 90 if settings.quarter_turns else 0
    angle = draws.uniform(-settings.max_angle_deg, settings.max_angle_deg)
    return change.rotated(quad, torch.tensor([quarters]), torch.tensor([angle], dtype=torch.float64))


def _perspective(quad: Tensor, settings: GeometricSettings, draws: DrawSource) -> Tensor:
    shares = [draws.uniform(-1, 1) for _ in range(8)]
    return change.distorted(quad, settings.max_distortion * quad.new_tensor(shares).view(1, 4, 2))


def _listed(item: Any) -> Sequence[Any]:
    return item if isinstance(item, list | tuple) else (item,)


_OPERATIONS: dict[str, Callable[[Tensor, GeometricSettings, DrawSource], Tensor]] = {
    "identity": lambda quad, *_: quad,
    "hflip": lambda quad, *_: change.flipped(quad, 0),
    "crop": _crop,
    "crop_top_left": _crop_top_left,
    "rotate": _rotate,
    "perspective": _perspective,
}
