"""What trained networks have to beat, evaluated by the same set-ups: no answer, matching, another watermark's grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.base import ProvenanceModule
from lightning_modules.functional.geometry import decode_corners, frame_corners_px
from lightning_modules.functional.pixels import to_picture

from .evaluation import Ladder, SetUpOutputs, Synchroniser, evaluate_setups, setup_labels
from .matching import fit_grid, frame_corners, grid_corners, match_corners, published_numbers, quadrant_masks

Method = Literal["identity", "sift", "wam"]


class SyncBaselineModule(ProvenanceModule):
    """Finds corners without training: `identity` answers "not moved", `sift` matches, `wam` fits a grid of messages.

    `sift` is given the original, which no blind method has. `wam` needs the TorchScript file of that watermark.

    Args:
        method: Which.
        setups: The ladder of attacks.
        compat: Published arithmetic: SIFT's answer goes by the width on both axes and is rounded on a grid of `size`.
        size: Of that grid: the published baseline takes the shorter side of the pictures.
        wam: TorchScript file with `embed(images, messages)` and `detect(images)`, the latter giving a mask logit and 32
            bit logits for each pixel, (B, 33, H, W).
    """

    def __init__(
        self,
        method: Method = "identity",
        setups: Ladder = "published",
        compat: bool = False,
        size: int = 512,
        wam: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if method == "wam" and (wam is None or not Path(wam).is_file()):
            raise FileNotFoundError(f"model.wam must name the TorchScript file of that watermark, got {wam!r}")
        self.build()

    @property
    def setup_labels(self) -> list[str]:
        """Names of the set-ups that test steps evaluate."""
        return setup_labels(self.hparams["setups"])

    def configure_models(self) -> None:
        """Make what answers."""
        h: Any = self.hparams
        self.synchroniser: Synchroniser = Identity()
        if h.method == "sift":
            self.synchroniser = Sift(h.compat, h.size)
        elif h.method == "wam":
            self.synchroniser = WamGrid(h.wam)

    def configure_losses(self) -> None:
        """Nothing to train."""

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> NoReturn:
        """Refuse."""
        raise ValueError("SyncBaselineModule has nothing to train: use `test` instead of `fit`")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Refuse, before the first batch is read."""
        self.training_step({}, 0)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> SetUpOutputs:
        """Return what `SetUpEvaluation` reads."""
        h: Any = self.hparams
        return evaluate_setups(self.synchroniser, batch["image"], batch["index"], h.setups, h.compat)

    validation_step = test_step


class Identity:
    """Marks nothing and always answers "not moved"."""

    def embed(self, images: Tensor) -> Tensor:
        """Return the images as they are."""
        return images

    def find(self, attacked: Tensor, originals: Tensor) -> Tensor:
        """Return the corners of the frame."""
        frame = frame_corners_px(originals.shape[-2], originals.shape[-1], attacked.device)
        return frame.repeat(len(attacked), 1, 1)


class Sift(Identity):
    """Matches attacked pictures with their unmarked originals.

    Args:
        compat: Go through the published eight numbers.
        size: Side of the grid that these are rounded on.
    """

    def __init__(self, compat: bool = False, size: int = 512) -> None:
        self.compat = compat
        self.size = size

    def find(self, attacked: Tensor, originals: Tensor) -> Tensor:
        """Return quads by matching; the frame where nothing matches."""
        quads = [self._quad(*pair) for pair in zip(attacked, originals, strict=True)]
        return torch.stack(quads).to(attacked.device)

    def _quad(self, attacked: Tensor, original: Tensor) -> Tensor:
        height, width = original.shape[-2:]
        pictures = [truncated(image) if self.compat else to_picture(image) for image in (original, attacked)]
        corners = match_corners(*pictures)
        if self.compat:
            numbers = torch.from_numpy(published_numbers(corners, height, width))
            return decode_corners(numbers, height, width, self.size, compat=True)
        return torch.from_numpy(frame_corners(height, width) if corners is None else corners)


class WamGrid:
    """Puts four messages on the quarters of pictures by another watermark, and fits their borders.

    Args:
        path: Its TorchScript file.
    """

    def __init__(self, path: str) -> None:
        # A program, not data: whoever names the file runs it.
        self.network: Any = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]

    def embed(self, images: Tensor) -> Tensor:
        """Return images with a message on each quarter, on levels of 8 bits."""
        side = min(images.shape[-2:])
        masks = torch.from_numpy(quadrant_masks(side)).to(images)
        masks = F.interpolate(masks[None], images.shape[-2:], mode="nearest")[0]
        marked = images.clone()
        for mask, message in zip(masks, wam_messages(), strict=True):
            carrier = self.network.embed(images, message.to(images.device).repeat(len(images), 1))
            marked = torch.where(mask.bool(), _tensor_of(carrier, "imgs_w"), marked)
        return marked.clamp(0, 1).mul(255).round().div(255)

    def find(self, attacked: Tensor, originals: Tensor) -> Tensor:
        """Return quads by the fitted grid; the frame where too few pixels carry a message."""
        answers = _tensor_of(self.network.detect(attacked), "preds")
        height, width = originals.shape[-2:]
        quads = []
        for answer in answers.cpu().float():
            labels = message_of_pixels(answer)
            least = 0.7 if labels.shape[0] == 256 else 0.75
            if (labels >= 0).mean() < least or labels.shape[0] != labels.shape[1]:
                quads.append(frame_corners(height, width))
                continue
            side = labels.shape[0]
            quad = grid_corners(fit_grid(labels), side)
            quads.append(quad * [(width - 1) / (side - 1), (height - 1) / (side - 1)])
        return torch.from_numpy(np.stack(quads)).to(attacked.device)


def wam_messages() -> Tensor:
    """Return the four messages of 32 bits, (4, 32)."""
    halves = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    return halves.repeat_interleave(16, dim=1)


def message_of_pixels(answer: Tensor) -> NDArray[np.int8]:
    """Return which message each pixel carries (H, W), -1 for none, of a mask logit and 32 bit logits (33, H, W)."""
    bits = (answer[1:] > 0).float()
    distance = (bits[None] - wam_messages()[:, :, None, None]).abs().sum(dim=1)
    nearest = distance.min(dim=0)
    carries = (answer[0].sigmoid() > 0.5) & (nearest.values <= 6)
    labels: NDArray[np.int8] = torch.where(carries, nearest.indices, -1).numpy().astype(np.int8)
    return labels


def truncated(image: Tensor) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8 of an image in [0, 1], fractions of levels cut off as the published baseline does."""
    levels: NDArray[np.uint8] = (image.permute(1, 2, 0).cpu() * 255).byte().numpy()
    return levels


def _tensor_of(answer: Any, key: str) -> Tensor:
    found: Tensor = answer[key] if isinstance(answer, Mapping | dict) else answer
    return found
