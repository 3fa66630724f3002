"""The discriminator: tells marked pictures from others, patch by patch."""

from itertools import pairwise

from torch import Tensor, nn

from .embedder import RGBToYUV

_WIDTH = 32
_WIDEST = 8 * _WIDTH


class PatchDiscriminator(nn.Module):
    """Maps RGB in [0, 1] to a logit a patch, (B, 1, h, w); above 0 for originals.

    Args:
        layers: Steps after the first; each but the last halves the sides.
        inputs: 1 looks at luminance, 3 at colours.
    """

    def __init__(self, layers: int = 2, inputs: int = 1) -> None:
        super().__init__()
        if inputs not in (1, 3) or layers < 1:
            raise ValueError(f"the discriminator takes 1 or 3 channels in 1 or more layers, got {inputs} and {layers}")
        self.inputs = inputs
        self.rgb2yuv = RGBToYUV()
        widths = [min(_WIDTH * 2**layer, _WIDEST) for layer in range(layers + 1)]
        parts: list[nn.Module] = [_conv(inputs, widths[0], stride=2), nn.LeakyReLU(0.2)]
        for layer, (before, after) in enumerate(pairwise(widths), 1):
            parts += [_conv(before, after, stride=2 if layer < layers else 1), nn.GroupNorm(4, after)]
            parts += [nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*parts, _conv(widths[-1], 1, stride=1))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.main(self.rgb2yuv.luma(image) if self.inputs == 1 else image)
        return logits


def _conv(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1)
    nn.init.normal_(conv.weight, 0.0, 0.02)
    return conv
