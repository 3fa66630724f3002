"""Exported forms of SyncSeal: an image in, a marked image or corners out; or a file called as the published one is."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.exporting import ExportProgram

from .network import SyncNetwork
from .published import METADATA_KEY
from .torchscript import scripted

ExportPart = Literal["embedder", "detector", "published"]
_TOLERANCE = 1e-4
_CHECKED = ((1, 64, 48), (2, 97, 131), (1, 33, 200))
# torch.export takes a size of one for a size that cannot vary.
_MIN_SIDE = 2
_LICENSE = "MIT for the code and for weights trained by it; published weights stay under their authors' licence"


class EmbedderProgram(nn.Module):
    """Maps RGB images in [0, 1] of any sides to marked ones, not yet rounded to levels of 8 bits."""

    def __init__(self, network: SyncNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return marked images of the same shape."""
        own = self.network
        pattern = _resize(own.pattern(_resize(image, (own.size, own.size))), (image.shape[-2], image.shape[-1]))
        if own.attenuation is not None:
            pattern = own.attenuation.heat(image) * pattern
        # Not on levels of 8 bits: a last digit would decide which, and who stores the image rounds it anyway.
        return own.blend(image, pattern).clamp(0, 1)


class DetectorProgram(nn.Module):
    """Maps RGB images in [0, 1] of any sides to the detector's numbers."""

    def __init__(self, network: SyncNetwork) -> None:
        super().__init__()
        self.size = network.size
        self.detector = network.detector

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, outputs)."""
        found: Tensor = self.detector(_resize(image, (self.size, self.size)))
        return found


def export_program(network: SyncNetwork, part: ExportPart = "detector") -> ExportProgram:
    """Return a copy of one of the networks with all around it, and the facts a user of the file needs.

    Args:
        network: What to export.
        part: ``embedder`` marks images; ``detector`` finds corners; ``published`` has both and more, called as the
            published file is, for TorchScript alone.
    """
    if part not in _OUTPUTS:
        raise ValueError(f"`export_part` must be embedder, detector or published, got {part!r}")
    own = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    # Another layout in memory would be traced as a constant.
    own.to(memory_format=torch.contiguous_format)
    make, output = _PROGRAMS[part]
    return ExportProgram(
        network=make(own).eval(),
        output_name=output,
        min_side=_MIN_SIDE,
        metadata=export_facts(own)
        | {
            "part": part,
            "input": "image: float32 (B, 3, H, W), RGB, 0 to 1; resized inside",
            "output": _OUTPUTS[part].format(count=own.arguments["detector_outputs"]),
        },
    )


_PROGRAMS: dict[ExportPart, tuple[Callable[[SyncNetwork], nn.Module], str]] = {
    "embedder": (EmbedderProgram, "marked"),
    "detector": (DetectorProgram, "corners"),
    "published": (scripted, "embedded, detected, unwarped"),
}
_OUTPUTS: dict[ExportPart, str] = {
    "published": (
        "embed(imgs) -> preds_w, imgs_w; detect(imgs) -> preds, preds_pts; unwarp(imgs, preds_pts, (H, W)) -> images; "
        "forward does all three"
    ),
    "embedder": "marked: float32 (B, 3, H, W), 0 to 1; round to the nearest level of 8 bits to store it",
    "detector": (
        "corners: float32 (B, {count}): a logit, then x, y of TL, TR, BR, BL: where the corners of the image were in "
        "the original; p = n * S/2 + S/2 are pixels 0 to S - 1 of the original resized to S x S, S = img_size"
    ),
}


def export_facts(network: SyncNetwork) -> dict[str, Any]:
    """Return what an exported file says about its network."""
    made = network.arguments
    return {
        "method": "syncseal",
        "img_size": made["size"],
        **{name: made[name] for name in ("scaling_w", "scaling_i", "embedder", "attenuation", "jnd_border")},
        "license": _LICENSE,
    }


def write_script(
    network: SyncNetwork, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None
) -> float:
    """Write a TorchScript file with the published interface: embed, detect, unwarp and forward.

    The file is read back and compared with the network; it gets its name only when it has passed.

    Args:
        network: What to write.
        path: The file.
        metadata: JSON-able facts to store beside those of the network.

    Returns:
        The largest difference between the file's answers and the network's.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{os.getpid()}.{file.name}")
    program = export_program(network, "published")
    facts = program.metadata | dict(metadata or {})
    try:
        with warnings.catch_warnings(action="ignore"):  # torch.jit is deprecated
            torch.jit.save(program.network, str(partial), _extra_files={METADATA_KEY: json.dumps(facts)})
            script = torch.jit.load(str(partial), map_location="cpu")  # type: ignore[no-untyped-call]
        difference = _difference(network, script)
        # Not `>`: a difference that is no number fails too.
        if not difference <= _TOLERANCE:
            raise ValueError(f"the TorchScript file answers differently, by up to {difference:.1e}: {path} not written")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return difference


@torch.no_grad()
def _difference(network: SyncNetwork, script: Any) -> float:
    """Return how far pattern, corners and, beyond single levels, marked pixels are off on inputs of several sizes."""
    own = copy.deepcopy(network).cpu().float().eval()
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    for shape in _CHECKED:
        image = torch.rand(shape[0], 3, *shape[1:], generator=generator)
        wanted, got = own.embed(image), script.embed(image)
        differences = [wanted.pattern - got["preds_w"], own.detect(image) - script.detect(image)["preds"]]
        # A last digit can decide a rounding.
        differences.append((wanted.marked - got["imgs_w"]).abs() * 255 > 1.5)
        worst = max(worst, *(float(difference.float().abs().max()) for difference in differences))
    return worst


def _resize(image: Tensor, size_hw: tuple[int, int]) -> Tensor:
    # Also where the sides fit, which changes nothing: exporters take a case for a constant.
    return F.interpolate(image, size=size_hw, mode="bilinear", align_corners=False, antialias=True)
