"""Blend modes and their inverse: what a mark does to the pixels below it.

Formulas of the separable modes and of luminosity are those of the W3C "Compositing and Blending Level 1"
recommendation; all colours are straight (not premultiplied) and in [0, 1].
"""

from collections.abc import Callable

import torch
from torch import Tensor

_LUMINANCE = (0.3, 0.59, 0.11)
_SMALLEST_OFFSET = 1e-6  # keeps the gradient of greys finite


def _normal(_backdrop: Tensor, source: Tensor) -> Tensor:
    return source


def _multiply(backdrop: Tensor, source: Tensor) -> Tensor:
    return backdrop * source


def _screen(backdrop: Tensor, source: Tensor) -> Tensor:
    return backdrop + source - backdrop * source


def _overlay(backdrop: Tensor, source: Tensor) -> Tensor:
    # The strict comparison and this order of factors are the reference's: its truncation to 8 bits shows both.
    return torch.where(backdrop < 0.5, 2 * backdrop * source, 1 - 2 * (1 - backdrop) * (1 - source))


def _hard_light(backdrop: Tensor, source: Tensor) -> Tensor:
    return _overlay(source, backdrop)


def _soft_light(backdrop: Tensor, source: Tensor) -> Tensor:
    # sqrt is only selected above 0.25; clamping first keeps its infinite slope at 0 out of the gradient.
    bright = backdrop.clamp_min(0.25).sqrt()
    dark = ((16 * backdrop - 12) * backdrop + 4) * backdrop
    lifted = torch.where(backdrop <= 0.25, dark, bright)
    weight = 2 * source - 1
    return backdrop + weight * torch.where(source <= 0.5, backdrop.mul(1 - backdrop), lifted.sub(backdrop))


def _add(backdrop: Tensor, source: Tensor) -> Tensor:
    return (backdrop + source).clamp_(max=1)


def _difference(backdrop: Tensor, source: Tensor) -> Tensor:
    return (backdrop - source).abs_()


_SEPARABLE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "normal": _normal,
    "multiply": _multiply,
    "screen": _screen,
    "overlay": _overlay,
    "hard_light": _hard_light,
    "soft_light": _soft_light,
    "add": _add,
    "difference": _difference,
}

BLEND_MODES = (*_SEPARABLE, "luminosity")
"""Names that `blend` and `composite` accept."""


def _luminance(color: Tensor, channel_dim: int) -> Tensor:
    red, green, blue = color.unbind(channel_dim)
    return (_LUMINANCE[0] * red + _LUMINANCE[1] * green + _LUMINANCE[2] * blue).unsqueeze(channel_dim)


def _luminosity(backdrop: Tensor, source: Tensor, channel_dim: int) -> Tensor:
    """Hue and saturation of the backdrop with the luminance of the source (W3C SetLum and ClipColor)."""
    if backdrop.shape[channel_dim] != 3 or source.shape[channel_dim] != 3:
        raise ValueError(
            f"luminosity needs 3 channels in dimension {channel_dim}, got shapes {tuple(backdrop.shape)} and "
            f"{tuple(source.shape)}; pass channel_dim"
        )
    luminance = _luminance(source, channel_dim)
    offset = backdrop - _luminance(backdrop, channel_dim)
    # `offset` has zero luminance, so clipping is a scaling of it towards the grey of the wanted luminance.
    lowest = offset.amin(channel_dim, keepdim=True)
    highest = offset.amax(channel_dim, keepdim=True)
    fit_low = (luminance / (-lowest).clamp_min(_SMALLEST_OFFSET)).clamp(max=1)
    fit_high = ((1 - luminance) / highest.clamp_min(_SMALLEST_OFFSET)).clamp(max=1)
    return luminance + offset * torch.minimum(fit_low, fit_high)


def blend(backdrop: Tensor, source: Tensor, mode: str, channel_dim: int = -3) -> Tensor:
    """Colour f(B, S) that a fully opaque source in `mode` shows over the backdrop.

    Args:
        backdrop: Colours in [0, 1], any layout.
        source: Colours in [0, 1], broadcastable with the backdrop.
        mode: One of `BLEND_MODES`.
        channel_dim: Where RGB lies; read by luminosity only, the other modes work per value.

    Returns:
        Colours in [0, 1]; for "normal" the source itself, not a copy.
    """
    if mode == "luminosity":
        return _luminosity(backdrop, source, channel_dim)
    if mode not in _SEPARABLE:
        raise ValueError(f"unknown blend mode {mode!r}; use one of {', '.join(BLEND_MODES)}")
    return _SEPARABLE[mode](backdrop, source)


def composite(backdrop: Tensor, source: Tensor, alpha: Tensor, mode: str, channel_dim: int = -3) -> Tensor:
    """B(1 - a) + f(B, S)a, clipped to [0, 1], with a = alpha clipped to [0, 1].

    Args:
        backdrop: Colours in [0, 1], any layout.
        source: Straight colours of the mark, broadcastable with the backdrop.
        alpha: Opacity, broadcastable with the backdrop, e.g. with one channel.
        mode: One of `BLEND_MODES`.
        channel_dim: Where RGB lies; read by luminosity only.
    """
    alpha = alpha.clamp(0, 1)
    blended = blend(backdrop, source, mode, channel_dim)
    # Two products and a sum, not lerp: the reference's rounding, which truncation to 8 bits makes visible.
    return (backdrop * (1 - alpha)).add_(blended * alpha).clamp_(0, 1)


def uncomposite(watermarked: Tensor, source: Tensor, alpha: Tensor, eps: float = 1e-6) -> Tensor:
    """Backdrop (J - aW) / (1 - a), clipped to [0, 1]: undoes `composite` in mode "normal" where a < 1.

    Args:
        watermarked: J, colours in [0, 1].
        source: W, straight colours of the mark.
        alpha: Opacity of the mark, broadcastable with J.
        eps: Smallest divisor; where a reaches 1 the backdrop is lost and the answer means nothing.
    """
    alpha = alpha.clamp(0, 1)
    return ((watermarked - alpha * source) / (1 - alpha).clamp_min(eps)).clamp_(0, 1)
