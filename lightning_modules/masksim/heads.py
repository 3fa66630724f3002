"""Masks and references of many generators, scored together from a few sums over the half plane.

With x the mixed log spectrum, m a mask and r its reference, the cosine of normalised x·m and r needs Σ x·m·r, Σ x·m and
Σ x²·m² alone. The first two are linear in the spectrum and the last in its products of channels, so that all heads
together are two matrix products, and masked spectra never exist.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.functional.spectrum import half_sums, mirrored, to_full

from .network import MaskSimNetwork, masks_of, references_of

NORM_EPS = 1e-5
NORM_MOMENTUM = 0.1
_COSINE_EPS = 1e-8
_INITIAL_DEVIATION = 0.01
Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class HeadMaps:
    """What the sums are taken with; F = h · (w // 2 + 1) frequencies of the half plane."""

    linear: Tensor
    """Of Σ x·m·r and Σ x·m, (2, G, N, C, F)."""
    square: Tensor
    """Of Σ x²·m², (G, N, C, F)."""
    reference_norm: Tensor
    """(G, N, C)."""

    def of(self, heads: Sequence[int]) -> "HeadMaps":
        """Return the maps of some heads."""
        index = list(heads)
        return HeadMaps(self.linear[:, index], self.square[index], self.reference_norm[index])


@dataclass(frozen=True)
class HeadSums:
    """Sums over all frequencies of the whole plane, (B, G, N, C) each."""

    product: Tensor
    """Σ x·m·r."""
    total: Tensor
    """Σ x·m."""
    square: Tensor
    """Σ x²·m²."""


def head_maps(masks: Tensor, references: Tensor) -> HeadMaps:
    """Return the maps of masks and mean-free references (G, N, C, h, w)."""
    return HeadMaps(
        linear=torch.stack([half_sums(masks * references), half_sums(masks)]).flatten(-2),
        square=half_sums(masks.square()).flatten(-2),
        reference_norm=references.flatten(-2).norm(dim=-1),
    )


def head_sums(spectrum: Tensor, maps: HeadMaps, mix: Tensor) -> HeadSums:
    """Return the sums of half-plane log spectra (B, C, h, w // 2 + 1) for heads that mix channels by (G, C, C)."""
    count, channels = spectrum.shape[:2]
    flat = spectrum.flatten(2)
    first, second = torch.triu_indices(channels, channels, device=spectrum.device)
    linear = flat.flatten(0, 1) @ maps.linear.flatten(0, -2).T
    linear = linear.reshape(count, channels, *maps.linear.shape[:-1])
    product, total = torch.einsum("bksgnc,gck->sbgnc", linear, mix)
    square = (flat[:, first] * flat[:, second]).flatten(0, 1) @ maps.square.flatten(0, -2).T
    square = square.reshape(count, len(first), *maps.square.shape[:-1])
    twice = 1.0 + (first != second).to(mix.dtype)
    return HeadSums(product, total, torch.einsum("bpgnc,gcp->bgnc", square, mix[..., first] * mix[..., second] * twice))


def cosines(sums: HeadSums, gain: Tensor, shift: Tensor, reference_norm: Tensor, frequencies: int) -> Tensor:
    """Return cosines (B, G, N, C) of references to x·m · gain + shift, (G, N, C) each."""
    # A reference has no mean, so that the shift adds nothing to the product.
    squared = gain.square() * sums.square + 2 * gain * shift * sums.total + frequencies * shift.square()
    length = squared.clamp_min(_COSINE_EPS**2).sqrt() * reference_norm.clamp_min(_COSINE_EPS)
    return gain * sums.product / length


class HeadBank(nn.Module):
    """G detectors without what lies before their spectra: mix, masks, references, norm and logit of each.

    Args:
        heads: Number of detectors G.
        size: Sides h and w of the spectrum.
        channels: Of the spectrum.
        num_masks: Masks N a detector, with a reference each; the most similar counts.
        kernel_size: Odd side of the mean filter that smooths masks.
        tied: Whether mirrored frequencies share their parameters. Spectra are symmetric, so that it loses nothing.
    """

    num_batches_tracked: Tensor
    running_mean: Tensor
    running_var: Tensor
    box: Tensor

    def __init__(
        self,
        heads: int,
        size: tuple[int, int],
        channels: int = 3,
        num_masks: int = 1,
        kernel_size: int = 3,
        tied: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd, got {kernel_size}")
        height, width = size
        self.size, self.num_masks, self.tied = size, num_masks, tied
        shape = (heads, num_masks, channels, height, width // 2 + 1 if tied else width)
        self.mask_activations = nn.Parameter(_INITIAL_DEVIATION * torch.randn(shape))
        self.reference_patterns = nn.Parameter(_INITIAL_DEVIATION * torch.randn(shape))
        # As torch initialises a 1 × 1 convolution.
        self.mix = nn.Parameter(torch.empty(heads, channels, channels).uniform_(-1, 1) / channels**0.5)
        self.norm_weight = nn.Parameter(torch.ones(heads, channels))
        self.norm_bias = nn.Parameter(torch.zeros(heads, channels))
        self.scale_log = nn.Parameter(torch.zeros(heads))
        self.offset = nn.Parameter(torch.zeros(heads))
        self.register_buffer("running_mean", torch.zeros(heads, channels))
        self.register_buffer("running_var", torch.ones(heads, channels))
        self.register_buffer("num_batches_tracked", torch.zeros(heads, dtype=torch.int64))
        box = torch.full((channels, 1, kernel_size, kernel_size), 1 / kernel_size**2)
        self.register_buffer("box", box, persistent=False)

    def masks(self) -> Tensor:
        """Return masks (G, N, C, h, w) in (0, 1), zero frequency in the middle."""
        return masks_of(self._whole(self.mask_activations), self.box)

    def references(self) -> Tensor:
        """Return references without their means (G, N, C, h, w)."""
        return references_of(self._whole(self.reference_patterns))

    def maps(self) -> HeadMaps:
        """Return the maps that scores are summed with."""
        return head_maps(self.masks(), self.references())

    def sums(self, spectra: Sequence[Tensor], trunk_of: Sequence[int], maps: HeadMaps) -> HeadSums:
        """Return the sums of the heads from the spectra (B, C, h, w // 2 + 1) of their trunks."""
        if len(spectra) == 1:
            return head_sums(spectra[0], maps, self.mix)
        parts: dict[int, tuple[Tensor, ...]] = {}
        for trunk, spectrum in enumerate(spectra):
            heads = [head for head, of in enumerate(trunk_of) if of == trunk]
            found = head_sums(spectrum, maps.of(heads), self.mix[heads])
            for place, head in enumerate(heads):
                parts[head] = (found.product[:, place], found.total[:, place], found.square[:, place])
        stacked = (torch.stack([parts[head][kind] for head in range(len(trunk_of))], dim=1) for kind in range(3))
        return HeadSums(*stacked)

    def forward(
        self,
        spectra: Sequence[Tensor],
        trunk_of: Sequence[int],
        selected: Tensor | None = None,
        reduce: Reduce | None = None,
    ) -> Tensor:
        """Return similarities (B, G) in [-1, 1].

        Args:
            spectra: Half-plane log spectra of each trunk.
            trunk_of: The trunk of each head.
            selected: Which samples a head's batch norm sees in train mode (B, G); all by default.
            reduce: Sums over processes in train mode, so that batch norm sees the batch of all.
        """
        maps = self.maps()
        sums = self.sums(spectra, trunk_of, maps)
        if self.training:
            chosen = torch.ones_like(sums.total[:, :, 0, 0]) if selected is None else selected.to(sums.total.dtype)
            mean, variance = self._batch_statistics(sums, chosen, reduce)
        else:
            mean, variance = self.running_mean[:, None], self.running_var[:, None]
        return self.similarity(sums, maps.reference_norm, mean, variance)

    def similarity(self, sums: HeadSums, reference_norm: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Return similarities (B, G) of sums normalised by means and variances (G, N or 1, C)."""
        gain = self.norm_weight[:, None] / (variance + NORM_EPS).sqrt()
        shift = self.norm_bias[:, None] - gain * mean
        found = cosines(sums, gain, shift, reference_norm, self.size[0] * self.size[1])
        return found.mean(dim=-1).amax(dim=-1)

    def logit(self, similarity: Tensor) -> Tensor:
        """Return logits of similarities (…, G)."""
        return self.scale_log.exp() * similarity + self.offset

    def _batch_statistics(self, sums: HeadSums, chosen: Tensor, reduce: Reduce | None) -> tuple[Tensor, Tensor]:
        """Return mean and variance (G, N, C) of x·m over the chosen samples, and let the running ones follow."""
        weight = chosen[:, :, None, None]
        parts = [(weight * sums.total).sum(dim=0), (weight * sums.square).sum(dim=0)]
        parts.append(chosen.sum(dim=0)[:, None, None].expand_as(parts[0]))
        total, square, samples = reduce(torch.stack(parts)) if reduce else torch.stack(parts)
        count = samples * (self.size[0] * self.size[1])
        mean = total / count.clamp_min(1)
        variance = (square / count.clamp_min(1) - mean.square()).clamp_min(0)
        self._follow(mean.detach(), (variance * count / (count - 1).clamp_min(1)).detach(), samples.detach())
        return mean, variance

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, samples: Tensor) -> None:
        # As published, a norm that is applied to each of several masks in turn follows all of them in turn.
        for mask in range(self.num_masks):
            seen = samples[:, mask] > 0
            for running, batch in ((self.running_mean, mean[:, mask]), (self.running_var, variance[:, mask])):
                running.copy_(torch.where(seen, running.lerp(batch.to(running.dtype), NORM_MOMENTUM), running))
            self.num_batches_tracked += seen.any(dim=-1)

    def _whole(self, parameters: Tensor) -> Tensor:
        if not self.tied:
            return parameters
        whole = to_full(parameters, self.size[1])
        # In the columns that are their own mirrors the half plane holds both of a pair.
        return (whole + mirrored(whole)) / 2

    @torch.no_grad()
    def load_detector(self, head: int, network: MaskSimNetwork) -> None:
        """Take what a published detector learnt, as one of the heads."""
        if self.tied:
            raise ValueError("published masks are not symmetric and do not fit tied ones: set model.tied to false")
        self.mask_activations[head] = torch.stack(list(network.mask_pre_activ_list))
        self.reference_patterns[head] = torch.stack(list(network.ref_pattern_list))
        self.mix[head] = network.mix
        norm = network.norm_vector
        self.norm_weight[head], self.norm_bias[head] = norm.weight, norm.bias
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        self.running_mean[head], self.running_var[head] = norm.running_mean, norm.running_var
        self.num_batches_tracked[head] = norm.num_batches_tracked
        self.scale_log[head], self.offset[head] = network.clf_a, network.clf_b

    @torch.no_grad()
    def write_detector(self, head: int, network: MaskSimNetwork) -> None:
        """Give one of the heads to a published detector of the same sizes."""
        activations, patterns = self._whole(self.mask_activations), self._whole(self.reference_patterns)
        for mask in range(self.num_masks):
            network.mask_pre_activ_list[mask].copy_(activations[head, mask])
            network.ref_pattern_list[mask].copy_(patterns[head, mask])
        network.mix.copy_(self.mix[head])
        norm = network.norm_vector
        norm.load_state_dict(
            {
                "weight": self.norm_weight[head],
                "bias": self.norm_bias[head],
                "running_mean": self.running_mean[head],
                "running_var": self.running_var[head],
                "num_batches_tracked": self.num_batches_tracked[head],
            }
        )
        network.clf_a.copy_(self.scale_log[head])
        network.clf_b.copy_(self.offset[head])
