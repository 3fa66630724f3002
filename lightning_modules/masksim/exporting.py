"""The exported form of a bank: an image in, logit, probability and p-value of each generator and of any out."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_modules.exporting import ExportProgram
from lightning_modules.functional.color import rgb_to_ycbcr_studio
from lightning_modules.functional.detection_calibration import NOMINAL_RATES, Calibration, CalibrationLayer
from lightning_modules.functional.spectrum import SMALLEST_MAGNITUDE

from .bank import DetectorBank, Trunk
from .folding import FoldedDenoiser
from .heads import NORM_EPS, HeadMaps, cosines, head_sums
from .inference import JPEG_BLOCK

if TYPE_CHECKING:
    from .module import MaskSimModule

ANY = "any"
# torch.export takes a size of one for a size that cannot vary.
_MIN_SIDE = 2
_LICENSE = (
    "MIT for the code and for weights trained by it alone; a denoiser or checkpoint of the authors stays under theirs "
    "(non-profit use)"
)


class CentralWindow(nn.Module):
    """Takes the central window of images of any sides as evaluation data do, in steps of 8 pixels."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, image: Tensor) -> Tensor:
        """Return windows (B, 3, side, side); a smaller image goes on mirrored."""
        rows = self._positions(image.shape[-2], image.device)
        columns = self._positions(image.shape[-1], image.device)
        return image.index_select(2, rows).index_select(3, columns)

    def _positions(self, length: int, device: torch.device) -> Tensor:
        # Indices, and lengths as tensors, are the same code for all sizes; exporters take cases for constants.
        nothing = torch.zeros(1, dtype=torch.int64, device=device)
        start = (nothing + (length // 2 - self.side // 2)).clamp(min=0) // JPEG_BLOCK * JPEG_BLOCK
        turn = nothing + 2 * length
        folded = (torch.arange(self.side, device=device) + start) % turn
        return torch.minimum(folded, turn - 1 - folded)


class HalfPlaneLogMagnitude(nn.Module):
    """Computes `half_log_magnitude` by matrix products: not every export format has a Fourier transform.

    In float64, since a logarithm of small sums shows every digit that is lost in them.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, size_hw: tuple[int, int], relative_floor: float) -> None:
        super().__init__()
        height, width = size_hw
        self.relative_floor = relative_floor
        self.register_buffer("rows", _fourier_matrix(height, height))
        self.register_buffer("columns", _fourier_matrix(width, width // 2 + 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return log(|F| + floor) of real images (…, h, w), float32 (…, h, w // 2 + 1)."""
        across = image.double() @ self.columns[0], image.double() @ self.columns[1]
        real = self.rows[0] @ across[0] - self.rows[1] @ across[1]
        imaginary = self.rows[1] @ across[0] + self.rows[0] @ across[1]
        magnitude = (real.square() + imaginary.square()).sqrt()
        return (magnitude + self._floor(magnitude)).log().float()

    def _floor(self, magnitude: Tensor) -> Tensor | float:
        if self.relative_floor == 0.0:
            return SMALLEST_MAGNITUDE
        # The lower median, as `torch.median` takes it; formats have sorting instead.
        values = magnitude.flatten(-2)
        median = values.sort(dim=-1).values[..., (values.shape[-1] - 1) // 2]
        return (self.relative_floor * median).clamp_min(SMALLEST_MAGNITUDE)[..., None, None]


class ExportedTrunk(nn.Module):
    """Computes what a folded `Trunk` does, out of operations that every format has."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.ycbcr, self.truncate = trunk.color == "ycbcr", trunk.truncate
        self.preproc = trunk.preproc
        self.spectrum = HalfPlaneLogMagnitude(trunk.window_hw, trunk.relative_floor)

    def forward(self, window: Tensor) -> Tensor:
        """Return log spectra (B, 3, h, w // 2 + 1) of RGB windows in [0, 1]."""
        pixels = rgb_to_ycbcr_studio(window, self.truncate) if self.ycbcr else window
        # The bare computation: who runs the file sets its precision.
        before = self.preproc
        residual: Tensor = before.residual(pixels) if isinstance(before, FoldedDenoiser) else before(pixels)
        spectrum: Tensor = self.spectrum(residual)
        return spectrum


class ExportedHeads(nn.Module):
    """Logits of the heads on one trunk, with nothing of them but what scoring needs."""

    linear: Tensor
    square: Tensor
    reference_norm: Tensor
    mix: Tensor
    gain: Tensor
    shift: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, bank: DetectorBank, heads: Sequence[int]) -> None:
        super().__init__()
        source, chosen = bank.heads, list(heads)
        maps = bank.maps.of(chosen)
        gain = source.norm_weight[chosen] / (source.running_var[chosen] + NORM_EPS).sqrt()
        tensors = {
            "linear": maps.linear,
            "square": maps.square,
            "reference_norm": maps.reference_norm,
            "mix": source.mix[chosen],
            "gain": gain[:, None],
            "shift": (source.norm_bias[chosen] - gain * source.running_mean[chosen])[:, None],
            "scale": source.scale_log[chosen].exp(),
            "offset": source.offset[chosen],
        }
        for name, value in tensors.items():
            self.register_buffer(name, value.detach().float().cpu().clone())
        self.frequencies = bank.window_hw[0] * bank.window_hw[1]

    def forward(self, spectrum: Tensor) -> Tensor:
        """Return logits (B, heads) of log spectra."""
        sums = head_sums(spectrum, HeadMaps(self.linear, self.square, self.reference_norm), self.mix)
        found = cosines(sums, self.gain, self.shift, self.reference_norm, self.frequencies)
        return found.mean(dim=-1).amax(dim=-1) * self.scale + self.offset


class ExportedDetector(nn.Module):
    """Maps RGB images in [0, 1] to a table: a row a generator and one for any, columns as in the metadata."""

    order: Tensor
    chance_scale: Tensor
    chance_offset: Tensor

    def __init__(self, bank: DetectorBank, calibration: Calibration | None) -> None:
        super().__init__()
        own = copy.deepcopy(bank).cpu().float().eval()
        self.window = CentralWindow(bank.img_size)
        self.trunks = nn.ModuleList(ExportedTrunk(trunk) for trunk in own.trunks if isinstance(trunk, Trunk))
        members = [[head for head, of in enumerate(own.trunk_of) if of == place] for place in range(len(own.trunks))]
        self.heads = nn.ModuleList(ExportedHeads(own, heads) for heads in members)
        order = torch.tensor([head for heads in members for head in heads]).argsort()
        self.register_buffer("order", order)
        self.p_values = None if calibration is None else CalibrationLayer(calibration)
        scale = torch.ones(len(order)) if calibration is None else torch.from_numpy(calibration.scale).float()
        offset = torch.zeros(len(order)) if calibration is None else torch.from_numpy(calibration.offset).float()
        self.register_buffer("chance_scale", scale)
        self.register_buffer("chance_offset", offset)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits, probabilities and, where calibrated, p-values: (B, G + 1, 2 or 3), the last row for any."""
        window = self.window(image)
        found = [heads(trunk(window)) for trunk, heads in zip(self.trunks, self.heads, strict=True)]
        logits = torch.cat(found, dim=1).index_select(1, self.order)
        chances = (logits * self.chance_scale + self.chance_offset).sigmoid()
        columns = [_with_largest(logits), _with_largest(chances)]
        if self.p_values is not None:
            columns.append(self.p_values(logits))
        return torch.stack(columns, dim=2)


def export_program(module: MaskSimModule) -> ExportProgram:
    """Return the module's bank with its calibration, and the facts a user of the file needs."""
    bank, calibration = module.scorer(), module.calibration
    columns = ["logit", "probability", *([] if calibration is None else ["p_value"])]
    side = bank.img_size
    return ExportProgram(
        network=ExportedDetector(bank, calibration).eval().requires_grad_(False),
        output_name="scores",
        min_side=_MIN_SIDE,
        metadata={
            "method": "masksim",
            "generators": list(bank.generators),
            "rows": [*bank.generators, ANY],
            "columns": columns,
            "window": side,
            **_calibration_facts(calibration),
            "input": (
                f"image: float32 (B, 3, H, W), RGB, 0 to 1, not resized; the central {side} px are looked at, "
                "a smaller image goes on mirrored"
            ),
            "output": (
                f"scores: float32 (B, {len(bank.generators) + 1}, {len(columns)}), rows and columns as named; the row "
                "any holds the largest logit and probability and the p-value of any generator"
            ),
            "license": _LICENSE,
        },
    )


def _calibration_facts(calibration: Calibration | None) -> dict[str, Any]:
    """Return what the table of a calibration says; thresholds that no logit can reach are null."""
    if calibration is None:
        return {"calibration_pictures": 0}
    points = {
        name: {str(rate): calibration.operating_point(head, rate).threshold for rate in NOMINAL_RATES}
        for head, name in enumerate(calibration.generators)
    }
    return {
        "calibration_pictures": len(calibration),
        "verdict_limits": list(calibration.limits),
        "thresholds": {
            name: {rate: value if math.isfinite(value) else None for rate, value in rates.items()}
            for name, rates in points.items()
        },
    }


def _with_largest(values: Tensor) -> Tensor:
    """Append the largest of each row."""
    return torch.cat([values, values.amax(dim=1, keepdim=True)], dim=1)


def _fourier_matrix(length: int, frequencies: int) -> Tensor:
    """Return cosines and sines (2, …) of the orthonormal transform, by which rows or columns are multiplied."""
    turns = torch.arange(length)[:, None] * torch.arange(frequencies) % length
    angles = 2 * math.pi / length * turns.double()
    return torch.stack([angles.cos(), angles.sin()]) / math.sqrt(length)
