"""What validation and test measure: corners found after named transforms, and how much the mark changes a picture."""

from collections.abc import Callable, Sequence
from typing import TypedDict, cast

import torch
from torch import Tensor

from lightning_modules.functional.geometry import corner_error_px, frame_corners_px
from lightning_modules.functional.image_quality import psnr
from lightning_modules.functional.sample_draws import SampleDraws

from .augmentation.setups import named_attack
from .evaluation import similarity
from .network import Embedded
from .refinement import Detection

_EVALUATION_SEED = 20250916


class SyncOutputs(TypedDict):
    """What ``validation_step`` and ``test_step`` return, for callbacks to read; K transforms."""

    index: Tensor
    """Stable position in the data set, int64 (B,)."""
    transforms: list[str]
    """Names of the K transforms."""
    corner_error_px: Tensor
    """Mean distance of found to true corners (B, K), in pixels of the picture."""
    identity_error_px: Tensor
    """What the answer "not moved" gives (B, K)."""
    unmarked_error_px: Tensor
    """What is answered to the same pictures without a mark, equally attacked (B, K): found without its help."""
    error_share: Tensor
    """Corner errors as shares of the longer side (B, K)."""
    presence: Tensor
    """Logits of marked pictures (B, K)."""
    spread: Tensor
    """How far their looks disagree (B, K)."""
    presence_unmarked: Tensor
    """Logits of the same pictures without a mark, equally attacked (B, K)."""
    spread_unmarked: Tensor
    """How far their looks disagree (B, K)."""
    psnr: Tensor
    """Of marked pictures, in dB (B,)."""
    ssim: Tensor
    """Of marked pictures (B,)."""


def evaluate(
    embed: Callable[[Tensor], Embedded],
    detect: Callable[[Tensor], Detection],
    images: Tensor,
    index: Tensor,
    transforms: Sequence[str],
) -> SyncOutputs:
    """Return what is found in marked and unmarked pictures after each transform.

    Args:
        embed: Marks pictures.
        detect: Finds corners.
        images: Originals (B, 3, H, W) in [0, 1].
        index: Their positions in the data set (B,): draws depend on them and on nothing else.
        transforms: Names of attacks.
    """
    marked = embed(images).marked
    columns: dict[str, list[Tensor]] = {}
    for name in transforms:
        for key, value in _found(detect, name, images, marked, index).items():
            columns.setdefault(key, []).append(value)
    outputs = {
        "index": index,
        "transforms": list(transforms),
        "psnr": psnr(marked, images),
        "ssim": similarity(marked, images),
        **{key: torch.stack(values, dim=1) for key, values in columns.items()},
    }
    return cast(SyncOutputs, outputs)


def _found(
    detect: Callable[[Tensor], Detection], name: str, images: Tensor, marked: Tensor, index: Tensor
) -> dict[str, Tensor]:
    keys = SampleDraws.of_samples(_EVALUATION_SEED, 0, index).keys
    attacked = named_attack(torch.cat([marked, images]), name, SampleDraws(keys.repeat(2)))  # both kinds alike
    seen, seen_unmarked = attacked.images.chunk(2)
    true = attacked.quads_px[: len(images)].to(images.device)
    detection, unmarked = detect(seen), detect(seen_unmarked)
    height, width = images.shape[-2:]
    error = corner_error_px(detection.quads_px, true)
    return {
        "corner_error_px": error,
        "identity_error_px": corner_error_px(frame_corners_px(height, width).to(true), true),
        "unmarked_error_px": corner_error_px(unmarked.quads_px, true),
        "error_share": error / max(height, width),
        "presence": detection.presence,
        "spread": detection.spread,
        "presence_unmarked": unmarked.presence,
        "spread_unmarked": unmarked.spread,
    }
