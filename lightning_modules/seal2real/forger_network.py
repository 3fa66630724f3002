"""The forger: a picture of a drawn seal in, the same picture with its ink changed out."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.functional.morphology import dilate_square
from lightning_modules.functional.sample_draws import SampleDraws

from .forger_textures import map_count, textured

ForgerKind = Literal["small", "texture", "smp"]
GROUPS = 8


class SmallUNet(nn.Module):
    """A U-Net of some hundred thousand parameters, two convolutions a level.

    It sees squares of pixels as channels, at a fraction of the cost: next to the U-Net of the prior it shall not count.

    Args:
        inputs: Channels of the input.
        channels: Of each level, from the finest to the coarsest; multiples of 8.
        outputs: Channels of the output.
        fold: Side of these squares.
    """

    def __init__(self, inputs: int, channels: Sequence[int], outputs: int = 3, fold: int = 2) -> None:
        super().__init__()
        if not channels or any(width < GROUPS or width % GROUPS for width in channels):
            raise ValueError(f"`channels` of a forger must be multiples of {GROUPS}, got {list(channels)}")
        self.fold, self.stride = fold, fold * 2 ** (len(channels) - 1)
        sources = [inputs * fold**2, *channels[:-1]]
        self.down = nn.ModuleList(_two_convolutions(a, b) for a, b in zip(sources, channels, strict=True))
        pairs = list(zip(channels[1:], channels[:-1], strict=True))
        self.up = nn.ModuleList(_two_convolutions(coarse + fine, fine) for coarse, fine in reversed(pairs))
        self.head = nn.Conv2d(channels[0], outputs * fold**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H, W) of (B, inputs, H, W) whose sides are multiples of `stride`."""
        x = F.pixel_unshuffle(x, self.fold)
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.avg_pool2d(x, 2))
            kept.append(x)
        for block, skip in zip(self.up, reversed(kept[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        answer: Tensor = F.pixel_shuffle(self.head(x), self.fold)
        return answer


class ForgerNetwork(nn.Module):
    """Maps pictures, seal masks and noise to ``clip(x + allowed * limit * tanh(g(x, mask, noise)))``.

    The last layer starts at zero: an untrained forger changes nothing, or adds faint grain where it is of ``texture``.

    Args:
        kind: ``small`` is our own U-Net, ``smp`` one of segmentation_models_pytorch. ``texture`` is the small one, but
            says only how much tone, fading, softness and grain there is where: see `forger_textures`.
        channels: Of the levels of the small one.
        encoder: Of the one of smp: any of its encoders, or ``tu-`` and the name of a timm model.
        encoder_weights: Start of that encoder.
        noise_scales: Grain of each noise channel, in pixels.
        limit: Largest change of a pixel.
    """

    def __init__(
        self,
        kind: ForgerKind = "small",
        channels: Sequence[int] = (16, 32, 64),
        encoder: str = "resnet18",
        encoder_weights: Literal["imagenet"] | None = None,
        noise_scales: Sequence[int] = (1, 4, 16),
        limit: float = 1.0,
    ) -> None:
        super().__init__()
        if not noise_scales or min(noise_scales) < 1:
            raise ValueError(f"`noise_scales` must be one or more numbers of pixels, got {list(noise_scales)}")
        if not 0 < limit <= 1:
            raise ValueError(f"`limit` must be in (0, 1], got {limit}")
        self.noise_scales, self.limit = tuple(noise_scales), limit
        self.kind, inputs = kind, 4 + len(self.noise_scales)
        if kind != "smp":
            small = SmallUNet(inputs, channels, map_count(len(self.noise_scales)) if kind == "texture" else 3)
            self.generator: nn.Module = small
            self.stride, last = small.stride, small.head
        else:
            self.generator, self.stride = _smp_unet(encoder, encoder_weights, inputs)
            last = self.generator.segmentation_head[0]  # type: ignore[index,assignment]
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def forward(self, image: Tensor, mask: Tensor, allowed: Tensor, noise: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W) in [0, 1] that equal the input wherever nothing is allowed.

        Args:
            image: (B, 3, H, W) in [0, 1], any size.
            mask: The seal's ink, (B, 1, H, W) of 0 and 1 or bool.
            allowed: Where pixels may change, alike; see `allowed_around`.
            noise: (B, N, H, W); see `draw_grain`.
        """
        height, width = image.shape[-2:]
        inputs = torch.cat([2 * image - 1, mask.to(image), noise.to(image)], dim=1)
        padding = (0, -width % self.stride, 0, -height % self.stride)
        residual = self.generator(F.pad(inputs, padding, mode="replicate") if any(padding) else inputs)
        residual = residual[..., :height, :width].float()
        if self.kind == "texture":
            change = (textured(image, residual, noise.to(image)) - image).clamp(-self.limit, self.limit)
        else:
            change = self.limit * residual.tanh()
        forged: Tensor = (image + allowed.to(image) * change).clamp(0, 1)
        return forged


def allowed_around(ink: Tensor, dilation: int) -> Tensor:
    """Return where a forger may change pixels, bool (B, 1, H, W): ink (B, 1, H, W) grown by ``dilation`` pixels."""
    return dilate_square((ink > 0).float(), 2 * dilation + 1) > 0


def draw_grain(
    count: int,
    size_hw: tuple[int, int],
    scales: Sequence[int],
    generator: torch.Generator | SampleDraws | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return normal noise (count, N, H, W): channel k varies over ``scales[k]`` pixels.

    Args:
        count: Number of pictures.
        size_hw: Their height and width.
        scales: Grain of each channel.
        generator: Draws on its own device, or for each picture; torch's own on ``device`` where there is none.
        device: Where the noise is wanted.
    """
    place = generator.device if isinstance(generator, torch.Generator) else device
    height, width = size_hw
    channels = []
    for scale in scales:
        shape = (1, -(-height // scale), -(-width // scale))
        if isinstance(generator, SampleDraws):
            coarse = generator.noise(shape, place)
        else:
            coarse = torch.randn(count, *shape, generator=generator, device=place)
        if scale > 1:
            coarse = F.interpolate(coarse, scale_factor=float(scale), mode="bilinear", align_corners=False)
        channels.append(coarse[..., :height, :width])
    return torch.cat(channels, dim=1).to(device)


def _two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for source in (inputs, outputs):
        layers += [nn.Conv2d(source, outputs, 3, padding=1), nn.GroupNorm(GROUPS, outputs), nn.SiLU()]
    return nn.Sequential(*layers)


def _smp_unet(encoder: str, encoder_weights: str | None, inputs: int) -> tuple[nn.Module, int]:
    import segmentation_models_pytorch as smp

    network: nn.Module = smp.Unet(encoder, encoder_weights=encoder_weights, in_channels=inputs, classes=3)
    return network, 32
