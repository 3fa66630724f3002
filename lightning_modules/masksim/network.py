"""The published detector of one generator, with the key names of its published checkpoints."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.functional.spectrum import log_magnitude

from .denoiser import DEPTH, WIDTH, DnCNN

Preprocess = Literal["dncnn", "linear3x3", "cross_diff", "identity"]
PREPROCESSINGS: tuple[str, ...] = get_args(Preprocess)
_NORM_EPS = 1e-8
_INITIAL_DEVIATION = 0.01
_DIFFERENCE = ((1.0, -1.0), (-1.0, 1.0))


class CrossDifference(nn.Module):
    """Maps images to a(y, x) - a(y, x + 1) - a(y + 1, x) + a(y + 1, x + 1); the last row and column are zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.filter = nn.Conv2d(channels, channels, 2, groups=channels, bias=False).requires_grad_(False)
        self.filter.weight.copy_(torch.tensor(_DIFFERENCE).expand_as(self.filter.weight))

    def forward(self, image: Tensor) -> Tensor:
        """Return the differences, of the image's size."""
        return cross_difference(image, self.filter)


def cross_difference(image: Tensor, filter_: nn.Conv2d) -> Tensor:
    """Return the answer of a 2 × 2 filter, at its upper left pixel."""
    return F.pad(filter_(image), (0, 1, 0, 1))


def make_preprocessor(name: str, channels: int = 3, depth: int = DEPTH, width: int = WIDTH) -> nn.Module:
    """Return the network that leaves of an image what its spectrum is taken of."""
    if name == "dncnn":
        return DnCNN(channels, depth, width)
    if name == "linear3x3":
        return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
    if name == "cross_diff":
        return CrossDifference(channels)
    if name == "identity":
        return nn.Identity()
    raise ValueError(f"`preprocess` must be one of {', '.join(PREPROCESSINGS)}, got {name!r}")


def spectrum_side(name: str, img_size: int, depth: int = DEPTH) -> int:
    """Return the side of the spectrum of a window, whose border a denoiser takes off."""
    side = img_size - 2 * depth if name == "dncnn" else img_size
    if side < 2:
        raise ValueError(f"`img_size` {img_size} leaves nothing behind {depth} convolutions: take {2 * depth + 2}")
    return side


def masks_of(activations: Tensor, box: Tensor) -> Tensor:
    """Return masks in (0, 1) of free parameters (…, C, h, w), smoothed by a mean filter ``box`` (C, 1, k, k)."""
    smooth = F.conv2d(activations.reshape(-1, *activations.shape[-3:]), box, padding="same", groups=len(box))
    return smooth.sigmoid().reshape(activations.shape)


def references_of(patterns: Tensor) -> Tensor:
    """Return reference patterns (…, h, w) without their means."""
    return patterns - patterns.mean(dim=(-2, -1), keepdim=True)


class MaskSimNetwork(nn.Module):
    """Scores windows by the cosine between their masked log spectrum and a learnt reference.

    It takes YCbCr in [0, 1] as `rgb_to_ycbcr_studio` makes it. Kept as published; `bank` computes the same for many
    generators at once.

    Args:
        img_size: Side of the window.
        preprocess: What the spectrum is taken of.
        num_masks: Masks with a reference each; the most similar counts.
        kernel_size: Odd side of the mean filter that smooths masks.
        channels: Of the image.
        freeze_preprocessor: Whether its weights are left as they are. As published, batch norm in it still follows the
            batches when the network is in train mode.
        denoiser_depth: Convolutions of the denoiser.
        denoiser_width: Its features.
    """

    def __init__(
        self,
        img_size: int = 512,
        preprocess: str = "linear3x3",
        num_masks: int = 1,
        kernel_size: int = 3,
        channels: int = 3,
        freeze_preprocessor: bool = False,
        denoiser_depth: int = DEPTH,
        denoiser_width: int = WIDTH,
    ) -> None:
        super().__init__()
        preprocessor = make_preprocessor(preprocess, channels, denoiser_depth, denoiser_width)
        side = spectrum_side(preprocess, img_size, denoiser_depth)
        if kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd, got {kernel_size}")
        self.preprocess, self.img_size = preprocess, img_size
        self.num_masks, self.kernel_size = num_masks, kernel_size
        if isinstance(preprocessor, CrossDifference):
            self.conv_filter = preprocessor.filter
        elif preprocess != "identity":
            self.preproc = preprocessor.requires_grad_(not freeze_preprocessor)
        self.clf_a = nn.Parameter(torch.zeros(()))
        self.clf_b = nn.Parameter(torch.zeros(()))
        shape = (channels, side, side)
        self.mask_pre_activ_list = nn.ParameterList(_small_noise(*shape) for _ in range(num_masks))
        self.ref_pattern_list = nn.ParameterList(_small_noise(*shape) for _ in range(num_masks))
        self.mask_conv = nn.Conv2d(channels, channels, kernel_size, padding="same", groups=channels, bias=False)
        nn.init.constant_(self.mask_conv.weight.requires_grad_(False), 1 / kernel_size**2)
        self.in_conv_fft = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False))
        self.norm_vector = nn.BatchNorm1d(channels)

    @property
    def mix(self) -> Tensor:
        """The weights (C, C) that mix the channels of the spectrum."""
        weight = self.in_conv_fft[0].weight
        assert isinstance(weight, Tensor)
        return weight[:, :, 0, 0]

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B,) of YCbCr windows (B, C, H, W)."""
        return self.logit(self.similarity(self.log_spectrum(image)))

    def residual(self, image: Tensor) -> Tensor:
        """Return what preprocessing leaves of the windows."""
        if self.preprocess == "identity":
            return image
        if self.preprocess == "cross_diff":
            return cross_difference(image, self.conv_filter)
        residual: Tensor = self.preproc(image)
        return residual

    def log_spectrum(self, image: Tensor) -> Tensor:
        """Return log spectra (B, C, h, w), zero frequency in the middle."""
        return log_magnitude(self.residual(image))

    def masks(self) -> Tensor:
        """Return the masks (N, C, h, w)."""
        return masks_of(torch.stack(list(self.mask_pre_activ_list)), self.mask_conv.weight)

    def references(self) -> Tensor:
        """Return the references without their means (N, C, h, w)."""
        return references_of(torch.stack(list(self.ref_pattern_list)))

    def masked(self, spectrum: Tensor, mask: Tensor) -> Tensor:
        """Return mixed, masked and normalised log spectra (B, C, h·w); in train mode batch norm follows each call."""
        vectors: Tensor = self.norm_vector((self.in_conv_fft(spectrum) * mask).flatten(2))
        return vectors

    def similarity_per_mask(self, spectrum: Tensor) -> Tensor:
        """Return similarities (N, B) of log spectra to each reference."""
        pairs = zip(self.masks(), self.references(), strict=True)
        cosines = [
            F.cosine_similarity(self.masked(spectrum, mask), reference.flatten(1)[None], dim=-1)
            for mask, reference in pairs
        ]
        return torch.stack(cosines).mean(dim=-1)

    def similarity(self, spectrum: Tensor) -> Tensor:
        """Return similarities (B,) in [-1, 1], of the most similar mask."""
        return self.similarity_per_mask(spectrum).amax(dim=0)

    def logit(self, similarity: Tensor) -> Tensor:
        """Return logits of similarities."""
        return self.clf_a.exp() * similarity + self.clf_b

    def similarity_map(self, image: Tensor) -> Tensor:
        """Return what each frequency adds to the cosines of the first mask (B, C, h, w)."""
        spectrum = self.log_spectrum(image)
        vectors = self.masked(spectrum, self.masks()[0])
        reference = self.references()[0].flatten(1)
        return (_unit(vectors) * _unit(reference)).reshape(spectrum.shape)


def _small_noise(*shape: int) -> nn.Parameter:
    return nn.Parameter(_INITIAL_DEVIATION * torch.randn(*shape))


def _unit(vectors: Tensor) -> Tensor:
    lengths: Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors / (lengths + _NORM_EPS)
