"""Evaluation by set-ups: a move is made once for all changes of values behind it, pictures are looked at in batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, ParamSpec, Protocol, TypedDict, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_modules.functional.geometry import corner_error_px, decode_corners, frame_corners_px, unwarp, warp
from lightning_modules.functional.image_quality import psnr
from lightning_modules.functional.passes import side_by_side
from lightning_modules.functional.sample_draws import SampleDraws
from lightning_modules.functional.value_changes import add_noise

from .augmentation.setups import GEOMETRIC_SETUPS, VALUE_SETUPS, named_quads, named_values
from .network import Embedded
from .perceptual import lpips
from .refinement import Detection

Ladder = Literal["published", "wibe"]
EVALUATION_SEED, MOVE_STREAM, NOISE_STREAM = 0, 511, 512
PUBLISHED = tuple((move.name, tuple(change.name for change in VALUE_SETUPS)) for move in GEOMETRIC_SETUPS)
# WIBE's default ladder. Shares of crops are taken as shares of the area.
WIBE = (
    (
        "identity_0",
        ("Identity_0", "JPEG_80", "JPEG_50", "JPEG_20", "GaussianBlur_3", "GaussianBlur_5", "GaussianBlur_7",
         "Noise_0.03", "Noise_0.05", "Noise_0.08", "Resize_0.5", "Resize_2", "ResizeX_0.5", "Brightness_1.2",
         "Contrast_1.2"),
    ),
    *((move, ("Identity_0",)) for move in ("rotate_30", "rotate_60", "rotate_90")),
    *((f"{kind}_{area}", ("Identity_0",)) for kind in ("center_crop", "crop") for area in (0.3, 0.5, 0.8)),
)  # fmt: skip
LADDERS: dict[Ladder, tuple[tuple[str, tuple[str, ...]], ...]] = {"published": PUBLISHED, "wibe": WIBE}
_FRAMES = {"cpu": 1, "cuda": 128}  # in a pass of the detector: on a CPU one picture stays in a core's cache
_RESIZES = {"Resize": (1, 1), "ResizeX": (0, 1)}
P = ParamSpec("P")
T = TypeVar("T")


class SetUpOutputs(TypedDict):
    """What a test step by set-ups returns, for callbacks to read; K set-ups."""

    index: Tensor
    """Stable position in the data set, int64 (B,)."""
    setups: list[str]
    """Names of the K set-ups: move, strength, change of values, strength, with | between them."""
    corner_error_px: Tensor
    """Mean distance of found to true corners (B, K), in pixels of the picture."""
    identity_error_px: Tensor
    """What the answer "not moved" gives (B, K)."""
    detect_seconds: Tensor
    """Time to look at a picture, its share of the batch (B, K)."""
    unwarp_seconds: Tensor
    """Time to straighten it, its share of the batch (B, K)."""
    psnr: Tensor
    """Of marked pictures, in dB (B,)."""
    ssim: Tensor
    """Of marked pictures (B,)."""
    lpips: Tensor
    """Of marked pictures (B,); NaN where its weights are not on this machine."""
    embed_seconds: Tensor
    """Time to mark a picture, its share of the batch (B,)."""


class Synchroniser(Protocol):
    """Marks pictures, and says where the corners of attacked ones were."""

    def embed(self, images: Tensor) -> Tensor:
        """Return marked images (B, 3, H, W)."""
        ...

    def find(self, attacked: Tensor, originals: Tensor) -> Tensor:
        """Return quads (B, 4, 2) in pixels of the originals' frame.

        Args:
            attacked: (B, 3, h, w), of any size.
            originals: The pictures before they were marked (B, 3, H, W); only methods that are not blind look at them.
        """
        ...


class MarkingNetwork(Protocol):
    """The networks that a `NetworkSynchroniser` asks."""

    @property
    def size(self) -> int:
        """Side of what they see."""
        ...

    def embed(self, images: Tensor) -> Embedded:
        """Mark images."""
        ...

    def detect(self, images: Tensor) -> Tensor:
        """Return (B, 9 or more)."""
        ...


@dataclass(frozen=True)
class NetworkSynchroniser:
    """The trained networks.

    Args:
        network: They.
        detect: How corners are found: the module's `detect`, by as many looks as it takes.
        compat: Decode one look as published, on whole pixels of the networks' grid.
    """

    network: MarkingNetwork
    detect: Callable[[Tensor], Detection]
    compat: bool = False

    def embed(self, images: Tensor) -> Tensor:
        """Return marked images."""
        return self.network.embed(images).marked

    def find(self, attacked: Tensor, originals: Tensor) -> Tensor:
        """Return quads in pixels of the originals' frame."""
        quads = torch.empty(len(attacked), 4, 2, device=attacked.device)

        @torch.no_grad()
        def find_part(part: list[int]) -> None:
            rows = slice(part[0], part[-1] + 1)
            quads[rows] = self._found(attacked[rows], originals.shape[-2], originals.shape[-1]).to(quads.dtype)

        step = _FRAMES.get(attacked.device.type, 1)
        parts = [list(range(len(attacked)))[start : start + step] for start in range(0, len(attacked), step)]
        side_by_side(find_part, parts, attacked.device)
        return quads

    def _found(self, attacked: Tensor, height: int, width: int) -> Tensor:
        if self.compat:
            answer = self.network.detect(attacked).float()[:, 1:9]
            return decode_corners(answer, height, width, self.network.size, compat=True)
        quads = self.detect(attacked).quads_px
        own_height, own_width = attacked.shape[-2:]
        return quads * quads.new_tensor([(width - 1) / (own_width - 1), (height - 1) / (own_height - 1)])


def setup_labels(ladder: Ladder) -> list[str]:
    """Return the names of the set-ups of a ladder, in the order of its results."""
    strengths = {setup.name: setup.strength for setup in (*GEOMETRIC_SETUPS, *VALUE_SETUPS)}
    return [
        "|".join(part for name in (move, change) for part in (name, strengths.get(name, name.rpartition("_")[2])))
        for move, changes in LADDERS[ladder]
        for change in changes
    ]


@torch.no_grad()
def evaluate_setups(
    synchroniser: Synchroniser, images: Tensor, index: Tensor, ladder: Ladder, compat: bool = False
) -> SetUpOutputs:
    """Mark pictures, attack them by every set-up of a ladder and measure how well their corners are found.

    A picture's random crops and perspectives depend on its index alone.

    Args:
        synchroniser: What is evaluated.
        images: RGB in [0, 1] (B, 3, H, W).
        index: Stable position of each in the data set (B,).
        ladder: Which attacks.
        compat: Warp, unwarp and feed LPIPS in the published arithmetic.
    """
    marked, embed_seconds = _timed(images.device, synchroniser.embed, images)
    size_hw = (images.shape[-2], images.shape[-1])
    frame = frame_corners_px(*size_hw, images.device)
    columns: dict[str, list[Tensor]] = {"error": [], "identity": [], "detect": [], "unwarp": []}
    for number, (move, changes) in enumerate(LADDERS[ladder]):
        moved, quads = moved_by(move, marked, sample_draws(index, MOVE_STREAM + 10 * number), compat)
        true = quads.to(images.device, torch.float64)
        for frames, kept in _by_shape(moved, changes, index):
            originals = images.repeat(kept, 1, 1, 1)
            found, detect_seconds = _timed(images.device, synchroniser.find, frames, originals)
            _, unwarp_seconds = _timed(images.device, unwarp, frames, found, size_hw, compat)
            columns["error"] += corner_error_px(found.double(), true.repeat(kept, 1, 1)).chunk(kept)
            columns["identity"] += [corner_error_px(frame, true)] * kept
            for name, seconds in (("detect", detect_seconds), ("unwarp", unwarp_seconds)):
                columns[name] += [torch.full((len(images),), seconds / len(frames))] * kept
    return {
        "index": index,
        "setups": setup_labels(ladder),
        "corner_error_px": torch.stack(columns["error"], dim=1),
        "identity_error_px": torch.stack(columns["identity"], dim=1),
        "detect_seconds": torch.stack(columns["detect"], dim=1),
        "unwarp_seconds": torch.stack(columns["unwarp"], dim=1),
        "psnr": psnr(marked, images),
        "ssim": similarity(marked, images),
        "lpips": lpips(images, marked, compat),
        "embed_seconds": torch.full((len(images),), embed_seconds / len(images)),
    }


def moved_by(move: str, images: Tensor, draws: SampleDraws, compat: bool = False) -> tuple[Tensor, Tensor]:
    """Return pictures moved as a name says, and their quads (B, 4, 2)."""
    count, _, height, width = images.shape
    kind, _, strength = move.rpartition("_")
    if kind == "center_crop":
        corners = frame_corners_px(height, width)
        centre = corners.mean(dim=0)
        quads = ((corners - centre) * float(strength) ** 0.5 + centre).repeat(count, 1, 1)
    else:
        quads = named_quads(move, count, height, width, draws)
    moved = images if kind == "identity" else warp(images, quads.to(images.device), compat=compat)
    return moved, quads


def changed_by(change: str, images: Tensor, draws: SampleDraws) -> Tensor:
    """Return pictures changed as a name says; their size changes where it says so."""
    kind, _, strength = change.rpartition("_")
    if kind == "Noise":
        noise = draws.noise(images.shape[1:], images.device)
        return add_noise(images, noise, torch.full((len(images),), float(strength)))
    if kind in _RESIZES:
        sides = zip(images.shape[-2:], _RESIZES[kind], strict=True)
        size = [max(2, round(side * float(strength))) if scaled else side for side, scaled in sides]
        return F.interpolate(images, size, mode="bilinear", antialias=True)
    return named_values(images, change)


def similarity(image: Tensor, target: Tensor) -> Tensor:
    """Return the structural similarity of each picture (B,); NaN below the 11 px of its window."""
    if min(image.shape[-2:]) < 11:
        return torch.full((len(image),), torch.nan)
    value = structural_similarity_index_measure(image, target, reduction="none", data_range=1.0)
    assert isinstance(value, Tensor)
    return value.reshape(len(image))


def _by_shape(moved: Tensor, changes: tuple[str, ...], index: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Yield batches of changed pictures of one size, changes in their order, and how many changes each holds."""
    waiting: list[Tensor] = []
    for number, change in enumerate(changes):
        frames = changed_by(change, moved, sample_draws(index, NOISE_STREAM + 10 * number))
        if waiting and frames.shape != waiting[0].shape:
            yield torch.cat(waiting), len(waiting)
            waiting = []
        waiting.append(frames)
    yield torch.cat(waiting), len(waiting)


def sample_draws(index: Tensor, stream: int) -> SampleDraws:
    """Return the draws of evaluated pictures by their places in the data set."""
    return SampleDraws.of_samples(EVALUATION_SEED, 0, index, stream)


def _timed(device: torch.device, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """Return what some work gives, and its seconds; a GPU's queue is waited for."""
    _finish(device)
    start = time.perf_counter()
    result = work(*args, **kwargs)
    _finish(device)
    return result, time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
