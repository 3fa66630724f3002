"""What may happen to pictures, and how strongly. The defaults are those of the published training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

GEOMETRIC_NAMES = (
    "identity", "crop", "hflip", "rotate", "perspective",
    "vflip", "rotate_180", "rotate_inner", "stretch", "pad", "translate",
)  # fmt: skip
VALUE_NAMES = (
    "identity", "jpeg", "blur", "brightness", "contrast", "saturation",
    "hue", "grey", "median", "noise", "webp",
)  # fmt: skip
FILL_NAMES = ("black", "colour", "noise", "reflect")

Range = tuple[float, float]


def _published_geometry() -> dict[str, float]:
    return {"identity": 2, "crop": 1, "hflip": 1, "rotate": 1, "perspective": 1}


def _published_values() -> dict[str, float]:
    return {"jpeg": 1, "blur": 1, "brightness": 1, "contrast": 1, "saturation": 1}


@dataclass(frozen=True)
class GeometricSettings:
    """How pictures are moved: a chain of `stages` draws, warped once.

    With more than one stage, the first is a crop or nothing, half and half, whatever the weights say.

    Args:
        weights: Shares of the changes, of any sum: identity, crop, hflip, rotate, perspective as published; vflip,
            rotate_180, rotate_inner (turned and cropped so far that nothing outside shows), stretch (each axis on its
            own), pad (the whole picture somewhere in a larger one), translate.
        stages: Changes in a row.
        recrop_in_later_stages: Allow crops after the first stage, as the paper's model saw them; its code does not.
        max_angle_deg: Of rotations to either side, before quarter turns.
        quarter_turns: Turn by -90, 0 or 90 degrees besides.
        crop_area: Smallest and largest share of the area that a crop keeps.
        max_distortion: How far perspective moves a corner along either side, as a share of it.
        keep_convex: Halve a perspective until the quad is convex; the published one lets pictures fold.
        stretch: Least and largest factor of how much of the picture an axis shows.
        max_padding: Largest margin on each side, as a share of the picture's.
        max_translation: Largest shift along each side, as a share of it.
        fills: Shares of what lies outside the picture: black as published, one colour, noise, the picture mirrored.
    """

    weights: dict[str, float] = field(default_factory=_published_geometry)
    stages: int = 2
    recrop_in_later_stages: bool = False
    max_angle_deg: float = 45.0
    quarter_turns: bool = True
    crop_area: Range = (0.05, 1.0)
    max_distortion: float = 0.4
    keep_convex: bool = True
    stretch: Range = (0.7, 1.4)
    max_padding: float = 0.4
    max_translation: float = 0.3
    fills: dict[str, float] = field(default_factory=lambda: {"black": 1.0})

    def __post_init__(self) -> None:
        _check_weights("geometric.weights", self.weights, GEOMETRIC_NAMES)
        _check_weights("geometric.fills", self.fills, FILL_NAMES)
        _check_range("geometric.crop_area", self.crop_area, 0.0, 1.0)
        _check_range("geometric.stretch", self.stretch, 0.0, float("inf"))
        if self.stages < 1:
            raise ValueError(
                f"geometric.stages must be 1 or more, got {self.stages}; weights {{identity: 1}} move none"
            )
        if self.stages > 1:
            self.weights_of_stage(1)

    def weights_of_stage(self, stage: int) -> dict[str, float]:
        """Return the shares of the changes in a stage, counted from 0."""
        if self.stages == 1:
            return self.weights
        if stage == 0:
            return {"identity": 1.0, "crop": 1.0}
        later = {name: weight for name, weight in self.weights.items() if self.recrop_in_later_stages or name != "crop"}
        _check_weights("geometric.weights without crop", later, GEOMETRIC_NAMES)
        return later


@dataclass(frozen=True)
class ValueSettings:
    """How pixel values are changed: `stages` draws with replacement, one after the other.

    Args:
        weights: Shares of the changes, of any sum: jpeg, blur, brightness, contrast, saturation as published; identity,
            hue, grey, median, noise, webp.
        stages: Changes in a row; 0 for none.
        after_geometry: Share of the samples whose values change after the warp: 0 as in the published training, 1 as
            in its evaluation.
        jpeg_quality: Lowest and highest, whole numbers.
        jpeg_engine: ``codec`` for libjpeg on the CPU, ``dct`` for the device, ``auto`` for the one that is near.
        blur_kernel: Smallest and largest; even draws are made odd by adding 1.
        brightness: Least and largest factor.
        contrast: Least and largest factor.
        saturation: Least and largest factor.
        hue: Least and largest turn, parts of a circle.
        median_kernel: Smallest and largest, as for blur.
        noise_levels: Least and largest deviation, of 255.
        webp_quality: Lowest and highest, whole numbers.
    """

    weights: dict[str, float] = field(default_factory=_published_values)
    stages: int = 2
    after_geometry: float = 0.0
    jpeg_quality: tuple[int, int] = (30, 80)
    jpeg_engine: str = "auto"
    blur_kernel: tuple[int, int] = (3, 17)
    brightness: Range = (0.3, 2.2)
    contrast: Range = (0.3, 2.2)
    saturation: Range = (0.3, 2.2)
    hue: Range = (-0.3, 0.3)
    median_kernel: tuple[int, int] = (3, 7)
    noise_levels: Range = (1.0, 10.0)
    webp_quality: tuple[int, int] = (30, 80)

    def __post_init__(self) -> None:
        _check_weights("values.weights", self.weights, VALUE_NAMES)
        if self.jpeg_engine not in ("auto", "codec", "dct"):
            raise ValueError(f"values.jpeg_engine must be auto, codec or dct, got {self.jpeg_engine!r}")
        if self.stages < 0:
            raise ValueError(f"values.stages must be 0 or more, got {self.stages}")
        if not 0 <= self.after_geometry <= 1:
            raise ValueError(f"values.after_geometry must be between 0 and 1, got {self.after_geometry}")
        limits = {"jpeg_quality": (1, 100), "webp_quality": (1, 100), "hue": (-0.5, 0.5)}
        for name in (entry.name for entry in fields(self) if isinstance(getattr(self, entry.name), tuple)):
            _check_range(f"values.{name}", getattr(self, name), *limits.get(name, (0, float("inf"))))


def _check_weights(what: str, weights: dict[str, float], known: Iterable[str]) -> None:
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise ValueError(f"{what} has {', '.join(unknown)}; known are {', '.join(known)}")
    if min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0:
        raise ValueError(f"{what} must be 0 or more and not all 0, got {weights}")


def _check_range(what: str, limits: Range, lowest: float, highest: float) -> None:
    if not lowest <= limits[0] <= limits[1] <= highest:
        raise ValueError(f"{what} must be two numbers in order, from {lowest} to {highest}, got {list(limits)}")
