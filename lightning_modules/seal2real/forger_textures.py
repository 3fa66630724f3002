"""What press, paper and scanner do to a drawn seal: tone, fading, softness, grain. A network says how much, where."""

from torch import Tensor
from torch.nn import functional as F

DARKEST = 0.02
# Most that maps can ask for: densities, of fading a share of the density, of softness one of a blurred picture.
TONE, FADE, SOFTNESS, TINT, GRAIN = 1.2, 0.1, 0.7, 0.6, 0.3
# What a forger starts with, as a share of that.
TINT_START, GRAIN_START = 0.3, 0.05
SMOOTH_SIDE = 9
SHARES = 3  # noise channels, the last ones, that say how much of light, press and grain a picture gets


def map_count(noise_channels: int) -> int:
    """Return how many maps `textured` takes: tone, fading, softness, tint, and one for each noise of the grain."""
    if noise_channels <= SHARES:
        raise ValueError(
            f"model.network texture takes {SHARES + 1} or more of model.noise_scales, the last {SHARES} as wide as a "
            f"seal, got {noise_channels}"
        )
    return 4 + noise_channels - SHARES


def textured(image: Tensor, maps: Tensor, noise: Tensor) -> Tensor:
    """Return pictures (B, 3, H, W) with light, ink and sharpness changed and grain added, not yet clipped.

    No map can draw: they are smooth and all but one without colour, and what is fine comes from the noise, so a prior
    is not fooled by patterns. How much each picture gets is drawn, too: a prior's pull alone leads all to one mean.
    Grain and tint start above zero: pictures without any have no direction in which they are missed.

    Args:
        image: (B, 3, H, W) in [0, 1].
        maps: What a network says, (B, `map_count`, H, W).
        noise: (B, N, H, W).
    """
    fine, shares = noise[:, :-SHARES], (3 * noise[:, -SHARES:]).sigmoid()
    light, press, rough = (shares[:, place : place + 1] for place in range(SHARES))
    smooth = smoothed(smoothed(maps, SMOOTH_SIDE), SMOOTH_SIDE).tanh()
    tone, fade, softness, tint = (smooth[:, place : place + 1] for place in range(4))
    grain = smooth[:, 4:]
    density = -image.clamp(min=DARKEST).log()
    changed = image * (-TONE * light * tone - FADE * press * fade * density).exp()
    changed = changed + SOFTNESS * press * softness * (smoothed(changed, 3) - changed)
    cast = TINT * (tint + TINT_START) * noise[:, -1:] * image.new_tensor([1, 0, -1]).view(1, 3, 1, 1)
    rise: Tensor = cast + (GRAIN * rough * (grain + GRAIN_START) * fine).sum(1, keepdim=True)
    return changed * rise.exp()


def smoothed(planes: Tensor, side: int) -> Tensor:
    """Return means over squares around each pixel, as large as the input."""
    return F.avg_pool2d(planes, side, stride=1, padding=side // 2, count_include_pad=False)
