"""The published TorchScript interface: a self-contained file with embed, detect, unwarp; and such files as models."""

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .network import Embedded, SyncNetwork

# The compiler of TorchScript reads much of this file: it takes no postponed annotations and no constants from outside.


class PublishedInterface(nn.Module):
    """What the published file offers, out of a network's parts, as torch.jit.script compiles it.

    Methods, arguments and answers are the published ones. Other than there, quadrilaterals that are degenerate, not
    convex or no numbers leave their picture unwarped and do not stop the batch.
    """

    def __init__(self, network: SyncNetwork) -> None:
        super().__init__()
        own = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
        self.img_size: int = own.size
        self.scaling_w: float = own.scaling_w
        self.scaling_i: float = own.scaling_i
        small = torch.rand(2, 3, own.size, own.size, generator=torch.Generator().manual_seed(0))
        self.embedder = _traced(own.embedder, small[:, :1])
        self.detector = _traced(own.detector, small)
        self.attenuation = _traced(own.attenuation or NoAttenuation(), small)
        self.rgb2yuv = _traced(own.rgb2yuv, small)

    @torch.jit.export
    def embed(
        self, imgs: Tensor, mode: str = "bilinear", align_corners: bool = False, antialias: bool = True
    ) -> dict[str, Tensor]:
        """Return ``preds_w`` (B, 1, H, W), the pattern before scaling, and ``imgs_w``, the marked images."""
        height, width = imgs.shape[-2], imgs.shape[-1]
        small = self._resized(imgs, self.img_size, self.img_size, mode, align_corners, antialias)
        luma = self.rgb2yuv(small)[:, :1]
        pattern = self._resized(self.embedder(luma), height, width, mode, align_corners, antialias)
        pattern = self.attenuation(imgs) * pattern
        marked = (self.scaling_i * imgs + self.scaling_w * pattern).clamp(0.0, 1.0)
        return {"preds_w": pattern, "imgs_w": torch.round(marked * 255) / 255}

    @torch.jit.export
    def detect(
        self, imgs: Tensor, mode: str = "bilinear", align_corners: bool = False, antialias: bool = True
    ) -> dict[str, Tensor]:
        """Return ``preds`` (B, 9) and ``preds_pts`` (B, 8), the corners in the published normalisation."""
        preds = self.detector(self._resized(imgs, self.img_size, self.img_size, mode, align_corners, antialias))
        return {"preds": preds, "preds_pts": preds[:, 1:]}

    @torch.jit.export
    def unwarp(self, imgs: Tensor, pts_norm: Tensor, original_size: tuple[int, int] = (256, 256)) -> Tensor:
        """Return images (B, 3, H0, W0) straightened by corners (B, 8), decoded and cut to whole pixels as published."""
        if pts_norm.dim() != 2 or pts_norm.shape[0] != imgs.shape[0] or pts_norm.shape[1] != 8:
            raise ValueError("pts_norm must be (B, 8), one row an image")
        height, width = original_size
        images = self._resized(imgs, height, width, "bilinear", False, True)
        quads = decoded_corners(pts_norm, height, width, self.img_size)
        usable = usable_quads(quads, height, width)
        frame = frame_corners(height, width, quads)
        quads = torch.where(usable[:, None, None], quads.trunc(), frame)
        warped = warped_by(images, quads, frame)
        return torch.where(usable[:, None, None, None], warped, images)

    def forward(self, imgs: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Return what embed gives, what detect gives for that, and ``imgs_unwarped``, of 256 × 256 as published."""
        # The compiler wants what has a default, too.
        embedded = self.embed(imgs, "bilinear", False, True)
        detected = self.detect(embedded["imgs_w"], "bilinear", False, True)
        unwarped = self.unwarp(embedded["imgs_w"], detected["preds_pts"], (256, 256))
        return embedded, detected, {"imgs_unwarped": unwarped}

    def _resized(
        self, imgs: Tensor, height: int, width: int, mode: str, align_corners: bool, antialias: bool
    ) -> Tensor:
        if imgs.shape[-2] == height and imgs.shape[-1] == width:
            return imgs
        return F.interpolate(imgs, size=[height, width], mode=mode, align_corners=align_corners, antialias=antialias)


class NoAttenuation(nn.Module):
    """Stands in for the map where there is none."""

    def forward(self, image: Tensor) -> Tensor:
        """Return ones, (B, 1, H, W)."""
        return torch.ones_like(image[:, :1])


class ScriptedNetwork(nn.Module):
    """A TorchScript file of the published interface, run as it is, with the methods of a `SyncNetwork`.

    For files whose tensors fit none of our architectures. Their code runs: only for files that you trust.

    Args:
        path: The file.
        size: Side that its networks see; it is not asked for.
    """

    def __init__(self, path: str | os.PathLike[str], size: int = 256) -> None:
        super().__init__()
        self.size = size
        if not Path(path).is_file():
            raise FileNotFoundError(f"no TorchScript file at {path}")
        try:
            with _without_deprecation():
                self.script: Any = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ValueError(f"{path} is no whole TorchScript file: {str(error).strip().splitlines()[0]}") from None
        if lacking := [name for name in ("embed", "detect") if not hasattr(self.script, name)]:
            raise ValueError(f"{path} has no {' and no '.join(lacking)}: it does not offer the published interface")

    def embed(self, images: Tensor, lowres_attenuation: bool = False) -> Embedded:
        """Mark images (B, 3, H, W) in [0, 1]."""
        if lowres_attenuation:
            raise ValueError("a TorchScript file attenuates at full size: leave `lowres_attenuation` off")
        found = self.script.embed(images.float())
        return Embedded(found["preds_w"], found["imgs_w"])

    def detect(self, images: Tensor) -> Tensor:
        """Return (B, 9): a logit, then x, y of TL, TR, BR, BL in the published normalisation."""
        found: Tensor = self.script.detect(images.float())["preds"]
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Return `detect`."""
        return self.detect(images)


def scripted(network: SyncNetwork) -> torch.jit.ScriptModule:
    """Return a network behind the published interface, compiled."""
    with _without_deprecation(), torch.no_grad():
        return torch.jit.script(PublishedInterface(network))


def decoded_corners(pts_norm: Tensor, height: int, width: int, size: int) -> Tensor:
    """Return corners (B, 4, 2) in pixels of the original, rounded on the networks' grid first, as published."""
    half = size / 2
    on_grid = torch.round(pts_norm.reshape(-1, 4, 2) * half + half)
    x, y = on_grid[..., 0] * (width - 1) / (size - 1), on_grid[..., 1] * (height - 1) / (size - 1)
    return torch.stack([x, y], dim=-1)


def frame_corners(height: int, width: int, like: Tensor) -> Tensor:
    """Return the corners (1, 4, 2) of a picture in pixels: TL, TR, BR, BL."""
    right, bottom = float(width - 1), float(height - 1)
    return torch.tensor(
        [[[0.0, 0.0], [right, 0.0], [right, bottom], [0.0, bottom]]], dtype=like.dtype, device=like.device
    )


def usable_quads(quads: Tensor, height: int, width: int) -> Tensor:
    """Return (B,): whether corners (B, 4, 2) are numbers, near enough and, cut to whole pixels, strictly convex."""
    distance = (quads - frame_corners(height, width, quads)).square().sum((1, 2)).sqrt()
    corners = quads.trunc().double()
    edges = corners.roll(-1, 1) - corners
    following = edges.roll(-1, 1)
    turns = edges[..., 0] * following[..., 1] - edges[..., 1] * following[..., 0]
    convex = (turns > 0).all(1) | (turns < 0).all(1)
    # Comparisons with a number that is none are false; farther than a million pixels is no frame, as published.
    return convex & (distance <= 1e6)


def warped_by(images: Tensor, to_px: Tensor, from_px: Tensor) -> Tensor:
    """Return images with what is at corners ``from_px`` moved to ``to_px`` (B, 4, 2), black where nothing was.

    In the published frames: pixel centres lie at halves, corners at whole numbers.
    """
    h = homography_coefficients(to_px, from_px.expand_as(to_px)).to(images.dtype)
    height, width = images.shape[-2], images.shape[-1]
    x = (torch.arange(width, device=images.device) + 0.5).to(images.dtype)[None, None, :]
    y = (torch.arange(height, device=images.device) + 0.5).to(images.dtype)[None, :, None]
    a = [h[:, k, None, None] for k in range(8)]
    depth = a[6] * x + a[7] * y + 1
    across = (a[0] * x + a[1] * y + a[2]) / (0.5 * width * depth) - 1
    down = (a[3] * x + a[4] * y + a[5]) / (0.5 * height * depth) - 1
    grid = torch.stack([across, down], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def homography_coefficients(source: Tensor, target: Tensor) -> Tensor:
    """Return the first eight numbers (B, 8), float64, of the homographies that map corners to corners (B, 4, 2)."""
    x, y = source[..., 0].double(), source[..., 1].double()
    u, v = target[..., 0].double(), target[..., 1].double()
    one, nought = torch.ones_like(x), torch.zeros_like(x)
    for_u = torch.stack([x, y, one, nought, nought, nought, -u * x, -u * y], dim=-1)
    for_v = torch.stack([nought, nought, nought, x, y, one, -v * x, -v * y], dim=-1)
    rows = torch.cat([for_u, for_v], dim=1)
    found: Tensor = torch.linalg.solve(rows, torch.cat([u, v], dim=1))
    return found


def _traced(module: nn.Module, example: Tensor) -> torch.jit.ScriptModule:
    with _without_deprecation(), torch.no_grad():
        return torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-any-return, no-untyped-call]


def _without_deprecation() -> Any:
    # torch.jit is deprecated; it is what the published file is.
    return warnings.catch_warnings(action="ignore")
