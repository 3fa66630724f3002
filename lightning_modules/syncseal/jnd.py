"""How much a change is seen at each pixel: a just-noticeable-difference map."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Border = Literal["zero", "reflect"]
ApplyMode = Literal["multiply", "clamp"]

REACH = 2
"""Rows and columns around a pixel that its value depends on."""
_LUMA = (0.299, 0.587, 0.114)
_SOBEL_X = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
_SOBEL_Y = ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0))
_SURROUND = (
    (1.0, 1.0, 1.0, 1.0, 1.0),
    (1.0, 2.0, 2.0, 2.0, 1.0),
    (1.0, 2.0, 0.0, 2.0, 1.0),
    (1.0, 2.0, 2.0, 2.0, 1.0),
    (1.0, 1.0, 1.0, 1.0, 1.0),
)
_STRIP_PIXELS = 2**19


class JND(nn.Module):
    """Maps RGB images in [0, 1] to the change that is just noticed, in the same unit; always in float32.

    In 16 bits the powers overflow, and bfloat16 is off by more than two grey levels.

    Args:
        inputs: 1 looks at luminance, 3 at each colour.
        outputs: 1 or 3 channels of the map.
        border: What lies beyond the picture: ``zero`` as published, where borders look like strong edges, or
            ``reflect``, the picture mirrored.
        blue: Whether the map of red and green is halved; with three outputs.
    """

    def __init__(self, inputs: int = 1, outputs: int = 1, border: Border = "zero", blue: bool = False) -> None:
        super().__init__()
        if inputs not in (1, 3) or outputs not in (1, 3):
            raise ValueError(f"`attenuation` takes and gives 1 or 3 channels, got {inputs} and {outputs}")
        if border not in ("zero", "reflect"):
            raise ValueError(f"`jnd_border` must be zero or reflect, got {border!r}")
        self.inputs, self.outputs, self.border, self.blue = inputs, outputs, border, blue
        self.conv_x = Kernel(inputs, _SOBEL_X)
        self.conv_y = Kernel(inputs, _SOBEL_Y)
        self.conv_lum = Kernel(inputs, _SURROUND)

    def forward(self, image: Tensor) -> Tensor:
        """Return maps (B, outputs, H, W) of images (B, 3, H, W)."""
        with torch.autocast(image.device.type, enabled=False):
            return self.heat(image.float())

    def heat(self, image: Tensor) -> Tensor:
        """Return what `forward` does, outside of autocast: what exporters see."""
        return self._of_padded(self._padded(image))

    def in_strips(self, image: Tensor, rows: int | None = None) -> Tensor:
        """Return what `forward` does, without gradients, in a fraction of its memory: in strips of ``rows``."""
        height, width = image.shape[-2:]
        rows = rows or max(1, _STRIP_PIXELS // width)
        if height <= rows:
            whole: Tensor = self(image)
            return whole
        with torch.autocast(image.device.type, enabled=False):
            padded = self._padded(image.float())
            found = padded.new_empty(len(image), self.outputs, height, width)
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                found[:, :, top:bottom] = self._of_padded(padded[:, :, top : bottom + 2 * REACH])
        return found

    def attenuate(self, image: Tensor, marked: Tensor, mode: ApplyMode = "multiply") -> Tensor:
        """Return the image with its difference to the marked one scaled by the map, or held within it."""
        heat: Tensor = self(image)
        change = marked - image
        return image + (heat * change if mode == "multiply" else torch.maximum(torch.minimum(change, heat), -heat))

    def extra_repr(self) -> str:
        """Show the settings when printed."""
        return f"inputs={self.inputs}, outputs={self.outputs}, border={self.border}"

    def _padded(self, image: Tensor) -> Tensor:
        """Return what is looked at, in grey levels, with the border around it."""
        levels = image * 255
        if self.inputs == 1:
            red, green, blue = (levels[:, channel : channel + 1] * _LUMA[channel] for channel in range(3))
            levels = red + green + blue
        return F.pad(levels, (REACH,) * 4, mode="constant" if self.border == "zero" else "reflect")

    def _of_padded(self, padded: Tensor) -> Tensor:
        edge_x, edge_y, surround = self._sums(padded)
        around = surround / 32
        dark = 17 * (1 - (around / 127 + 1e-5).sqrt())
        bright = 3 / 128 * (around - 127) + 3
        adaptation = torch.where(around <= 127, dark, bright)
        # The edge's square: the root would have no gradient where there is no edge.
        edge2 = edge_x.square() + edge_y.square()
        masking = 0.117 * 16 * edge2**1.2 / (edge2 + 26**2)
        seen = (adaptation + masking - 0.3 * torch.minimum(adaptation, masking)).clamp(min=0)
        return self._to_outputs(seen) / 255

    def _sums(self, padded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three sums around each pixel; in one convolution, which takes as long as each alone."""
        kernels = [F.pad(kernel.weight, (1, 1, 1, 1)) for kernel in (self.conv_x, self.conv_y)]
        stacked = torch.stack([*kernels, self.conv_lum.weight], dim=1).flatten(0, 1)
        sums = F.conv2d(padded, stacked, groups=self.inputs)
        return sums[:, 0::3], sums[:, 1::3], sums[:, 2::3]

    def _to_outputs(self, seen: Tensor) -> Tensor:
        if self.outputs == 1:
            return seen.mean(dim=1, keepdim=True) if self.inputs == 3 else seen
        if self.inputs == 1:
            seen = seen.repeat(1, 3, 1, 1)
        return seen * seen.new_tensor((0.5, 0.5, 1.0)).view(3, 1, 1) if self.blue else seen


class Kernel(nn.Module):
    """Holds a constant kernel for each channel, (C, 1, k, k), under the name of a convolution's weight."""

    def __init__(self, channels: int, kernel: tuple[tuple[float, ...], ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(kernel).repeat(channels, 1, 1, 1), requires_grad=False)
