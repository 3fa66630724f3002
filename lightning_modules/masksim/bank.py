"""Detectors of many generators in one pass: shared residuals and spectra, and all heads scored from them."""

import copy
from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

from lightning_modules.functional.color import rgb_to_ycbcr_studio
from lightning_modules.functional.spectrum import half_log_magnitude, to_full

from .denoiser import DEPTH, WIDTH, DnCNN, full_precision
from .folding import FoldedDenoiser
from .heads import NORM_EPS, HeadBank, HeadMaps, head_maps
from .network import CrossDifference, MaskSimNetwork, make_preprocessor, spectrum_side

Color = Literal["ycbcr", "rgb"]
_UNIT_EPS = 1e-8


class Trunk(nn.Module):
    """Maps RGB windows in [0, 1] to log spectra on the half plane.

    Args:
        img_size: Side of the windows.
        preprocess: What the spectrum is taken of.
        color: What the window is turned into first.
        truncate: Whether YCbCr is cut down to 8 bits, as published detectors have learnt it.
        relative_floor: Added to magnitudes as a share of their median; 0 for the published 1e-10.
        denoiser_depth: Convolutions of the denoiser.
        denoiser_width: Its features.
    """

    def __init__(
        self,
        img_size: int,
        preprocess: str,
        color: Color = "ycbcr",
        truncate: bool = True,
        relative_floor: float = 0.0,
        denoiser_depth: int = DEPTH,
        denoiser_width: int = WIDTH,
    ) -> None:
        super().__init__()
        if color not in ("ycbcr", "rgb"):
            raise ValueError(f"`color` must be ycbcr or rgb, got {color!r}")
        self.img_size, self.preprocess, self.color, self.truncate = img_size, preprocess, color, truncate
        self.relative_floor = relative_floor
        self.preproc = make_preprocessor(preprocess, 3, denoiser_depth, denoiser_width)
        side = spectrum_side(preprocess, img_size, denoiser_depth)
        self.window_hw = (side, side)

    def forward(self, image: Tensor) -> Tensor:
        """Return log spectra (B, 3, h, w // 2 + 1)."""
        return half_log_magnitude(self.residual(image), self.relative_floor)

    def residual(self, image: Tensor) -> Tensor:
        """Return what preprocessing leaves of the windows."""
        side = self.img_size
        if image.shape[-2:] != (side, side):
            raise ValueError(f"a window must be {side} × {side} pixels, got {image.shape[-2]} × {image.shape[-1]}")
        residual: Tensor = self.preproc(rgb_to_ycbcr_studio(image, self.truncate) if self.color == "ycbcr" else image)
        return residual

    def folded(self, half: bool = False) -> "Trunk":
        """Return a copy for inference, without batch norm in its denoiser."""
        other = copy.deepcopy(self).eval().requires_grad_(False)
        if isinstance(other.preproc, DnCNN):
            # Channels last: convolutions of 64 features take two thirds of the time so on a CPU.
            other.preproc = FoldedDenoiser(other.preproc).to(memory_format=torch.channels_last)
            if half:
                other.preproc.half()
        return other

    def computes_as(self, other: "Trunk") -> bool:
        """Return whether the other trunk gives the same spectra."""
        settings = ("img_size", "preprocess", "color", "truncate", "relative_floor")
        own, others = self.state_dict(), other.state_dict()
        return (
            all(getattr(self, name) == getattr(other, name) for name in settings)
            and own.keys() == others.keys()
            and all(torch.equal(own[key], others[key]) for key in own if not key.endswith("num_batches_tracked"))
        )

    def load_detector(self, network: MaskSimNetwork) -> None:
        """Take the preprocessing of a published detector."""
        if self.preprocess in ("dncnn", "linear3x3"):
            self.preproc.load_state_dict(network.preproc.state_dict())
        elif isinstance(self.preproc, CrossDifference):
            self.preproc.filter.load_state_dict(network.conv_filter.state_dict())

    def write_detector(self, network: MaskSimNetwork) -> None:
        """Give the preprocessing to a published detector."""
        if self.preprocess in ("dncnn", "linear3x3"):
            network.preproc.load_state_dict(self.preproc.state_dict())


class DetectorBank(nn.Module):
    """Scores windows for all generators, for inference: nothing in it learns.

    Trunks that compute the same are one. Maps for scoring are made once.

    Args:
        generators: Names of the heads, in the order of the logits.
        trunks: Trunks, one for all heads or one a head.
        heads: The heads.
        half_denoiser: Whether denoisers compute in float16.
    """

    linear: Tensor
    square: Tensor
    reference_norm: Tensor
    first_masks: Tensor
    first_references: Tensor

    def __init__(
        self, generators: Sequence[str], trunks: Sequence[Trunk], heads: HeadBank, half_denoiser: bool = False
    ) -> None:
        super().__init__()
        different, trunk_of = distinct_trunks(trunks)
        self.generators = tuple(generators)
        self.trunk_of = trunk_of if len(trunks) > 1 else [0] * len(self.generators)
        self.img_size, self.window_hw = trunks[0].img_size, trunks[0].window_hw
        with torch.inference_mode(False), torch.no_grad():
            self.trunks = nn.ModuleList(trunk.folded(half_denoiser) for trunk in different)
            self.heads = copy.deepcopy(heads).eval().requires_grad_(False)
            masks, references = self.heads.masks(), self.heads.references()
            maps = head_maps(masks, references)
            made = {"linear": maps.linear, "square": maps.square, "reference_norm": maps.reference_norm}
            made |= {"first_masks": masks[:, 0], "first_references": references[:, 0]}
            for name, value in made.items():
                self.register_buffer(name, value.clone(memory_format=torch.contiguous_format), persistent=False)

    @classmethod
    def from_detectors(
        cls,
        detectors: Sequence[tuple[str, MaskSimNetwork]],
        color: Color = "ycbcr",
        truncate: bool = True,
        half_denoiser: bool = False,
    ) -> Self:
        """Return the bank of named published detectors, whose trunks are shared where they are equal."""
        trunks = [trunk_of_detector(network, color, truncate) for _, network in detectors]
        heads = heads_of_detectors([network for _, network in detectors])
        return cls([name for name, _ in detectors], trunks, heads, half_denoiser)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, G) of RGB windows (B, 3, H, W) in [0, 1]."""
        return self.score(self.log_spectrum(image))

    def log_spectrum(self, image: Tensor) -> Tensor:
        """Return log spectra (T, B, C, h, w // 2 + 1) of the half plane, one of each different trunk."""
        with full_precision(image.device.type):
            return torch.stack([trunk(image) for trunk in self.trunks])

    def score(self, spectra: Tensor) -> Tensor:
        """Return logits (B, G) of log spectra (T, B, C, h, w // 2 + 1)."""
        return self.heads.logit(self.similarity(spectra))

    def similarity(self, spectra: Tensor) -> Tensor:
        """Return similarities (B, G) of log spectra (T, B, C, h, w // 2 + 1)."""
        with full_precision(spectra.device.type):
            spectra = spectra.to(self.linear.dtype)
            sums = self.heads.sums(spectra.unbind(), self.trunk_of, self.maps)
            mean, variance = self.heads.running_mean[:, None], self.heads.running_var[:, None]
            return self.heads.similarity(sums, self.reference_norm, mean, variance)

    @property
    def maps(self) -> HeadMaps:
        """What the heads sum with."""
        return HeadMaps(self.linear, self.square, self.reference_norm)

    def similarity_map(self, image: Tensor, head: int) -> Tensor:
        """Return what each frequency adds to the cosines of a head's first mask (B, C, h, w), zero in the middle."""
        return self.spectrum_map(self.log_spectrum(image), head)

    def spectrum_map(self, spectra: Tensor, head: int) -> Tensor:
        """Return the similarity map (B, C, h, w) of log spectra (T, B, C, h, w // 2 + 1)."""
        heads = self.heads
        spectrum = to_full(spectra[self.trunk_of[head]].to(heads.mix.dtype), self.window_hw[1])
        masked = torch.einsum("ck,bkhw->bchw", heads.mix[head], spectrum) * self.first_masks[head]
        vectors = nn.functional.batch_norm(
            masked,
            heads.running_mean[head],
            heads.running_var[head],
            heads.norm_weight[head],
            heads.norm_bias[head],
            eps=NORM_EPS,
        )
        return unit_planes(vectors) * unit_planes(self.first_references[head])


def distinct_trunks(trunks: Sequence[Trunk]) -> tuple[list[Trunk], list[int]]:
    """Return the trunks that differ, and the place among them of each given one."""
    different: list[Trunk] = []
    places = []
    for trunk in trunks:
        place = next((place for place, other in enumerate(different) if trunk.computes_as(other)), len(different))
        if place == len(different):
            different.append(trunk)
        places.append(place)
    return different, places


def trunk_of_detector(network: MaskSimNetwork, color: Color = "ycbcr", truncate: bool = True) -> Trunk:
    """Return what a published detector does before its spectrum is masked, in the network's type and place."""
    depth, width = DEPTH, WIDTH
    if network.preprocess == "dncnn" and isinstance(network.preproc, DnCNN):
        depth, width = network.preproc.depth, network.preproc.width
    trunk = Trunk(network.img_size, network.preprocess, color, truncate, 0.0, depth, width).to(network.clf_a)
    trunk.load_detector(network)
    return trunk


def heads_of_detectors(networks: Sequence[MaskSimNetwork]) -> HeadBank:
    """Return published detectors as the heads of a bank; they must have spectra and masks of the same sizes."""
    shapes = {(len(n.mask_pre_activ_list), *n.mask_pre_activ_list[0].shape, n.mask_conv.kernel_size) for n in networks}
    if len(shapes) != 1:
        raise ValueError(f"detectors of different masks do not fit into one bank: {sorted(shapes)}")
    masks, channels, height, width, (kernel, _) = shapes.pop()
    heads = HeadBank(len(networks), (height, width), channels, masks, kernel).to(networks[0].clf_a)
    for head, network in enumerate(networks):
        heads.load_detector(head, network)
    return heads


def unit_planes(planes: Tensor) -> Tensor:
    """Return planes (…, h, w) divided by their lengths."""
    lengths: Tensor = planes.flatten(-2).norm(dim=-1)[..., None, None]
    return planes / (lengths + _UNIT_EPS)
