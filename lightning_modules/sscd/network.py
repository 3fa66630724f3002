"""The descriptor network: a convolutional trunk, GeM pooling, a linear projection, length one."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

import timm
import torch
import torchvision.models as tv
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.functional.normalization import IMAGENET_MEAN, IMAGENET_STD

GEM_FLOOR = 1e-6

_RESNETS: dict[str, Callable[..., tv.ResNet]] = {
    "resnet18": tv.resnet18,
    "resnet50": tv.resnet50,
    # The trunk of `sscd_disc_large`. torchvision has its parts but no name for it.
    "resnext101_32x4d": lambda **options: tv.ResNet(
        tv.resnet.Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4, **options
    ),
    "resnext101_32x8d": tv.resnext101_32x8d,
}


class GeM(nn.Module):
    """Generalised mean over positions; 1 is the average, large exponents approach the maximum.

    Args:
        exponent: A constant. Learnt, it diverges (paper).
    """

    def __init__(self, exponent: float = 3.0) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C) of (B, C, H, W)."""
        powered = features.clamp(min=GEM_FLOOR).flatten(2).pow(self.exponent)
        return powered.mean(dim=2).pow(1.0 / self.exponent)

    def extra_repr(self) -> str:
        """Show the exponent when printed."""
        return f"exponent={self.exponent}"


class TimmBackbone(nn.Module):
    """Any timm model as a trunk, with the head that a torchvision trunk has.

    Of a transformer, sides that are no multiple of its patch are filled up with the mean colour.

    Args:
        name: Name of a timm model.
        dims: Numbers a descriptor; None for the pooled features themselves.
        exponent: Of the pooling.
        pretrained: Whether timm loads its weights.
    """

    def __init__(self, name: str, dims: int | None, exponent: float, pretrained: bool = False) -> None:
        super().__init__()
        if not timm.is_model(name):
            close = get_close_matches(name, [*_RESNETS, *timm.list_models()], 4)
            raise ValueError(f"`backbone` {name!r} is neither one of ours nor of timm; close names: {', '.join(close)}")
        self.trunk = _timm_trunk(name, pretrained)
        for after_features in ("head", "fc_norm"):
            # Left out below: a reducer of gradients over processes would wait for those of a norm in it.
            getattr(self.trunk, after_features, nn.Identity()).requires_grad_(False)
        self.patch_hw = to_2tuple(getattr(getattr(self.trunk, "patch_embed", None), "patch_size", 1))
        self.avgpool = GeM(exponent)
        self.fc = _projection(self.trunk.num_features, dims)

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, dims) before scaling to length one."""
        missing_h, missing_w = (-side % patch for side, patch in zip(image.shape[-2:], self.patch_hw, strict=True))
        if missing_h or missing_w:
            image = F.pad(image, (0, missing_w, 0, missing_h))
        features = self.trunk.forward_features(image)
        if features.ndim == 3:  # tokens: drop those that belong to no position
            features = features[:, self.trunk.num_prefix_tokens :].transpose(1, 2)[..., None]
        elif getattr(self.trunk, "output_fmt", "NCHW") == "NHWC":
            features = features.permute(0, 3, 1, 2)
        projected: Tensor = self.fc(self.avgpool(features))
        return projected


class DescriptorNetwork(nn.Module):
    """Maps RGB images in [0, 1] of any size to descriptors of length one.

    The state dict is the published torchvision layout, ``backbone.*`` with the projection as ``backbone.fc``.

    Args:
        backbone: ``resnet18``, ``resnet50``, ``resnext101_32x4d``, ``resnext101_32x8d`` or any timm model.
        dims: Numbers a descriptor; None takes the pooled features as they are, without a projection.
        pool_exponent: Of GeM pooling; the published models use 3.
        pretrained: Whether the trunk starts from timm's weights, mostly of ImageNet.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: str = "resnet50", dims: int | None = 512, pool_exponent: float = 3.0, pretrained: bool = False
    ) -> None:
        super().__init__()
        self.backbone, self.dims = build_backbone(backbone, dims, pool_exponent, pretrained)
        # Not persistent: published files hold the backbone alone.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return descriptors (B, dims) of images (B, 3, H, W)."""
        return self.describe((image - self.mean) / self.std)

    def describe(self, normalised: Tensor) -> Tensor:
        """Return descriptors of images that are already scaled by ImageNet's mean and std, as published files do."""
        return F.normalize(self.backbone(normalised), dim=1, eps=1e-12)


def build_backbone(name: str, dims: int | None, exponent: float, pretrained: bool = False) -> tuple[nn.Module, int]:
    """Return a network that maps normalised images to unscaled descriptors, and how many numbers these have."""
    if name not in _RESNETS:
        network = TimmBackbone(name, dims, exponent, pretrained)
        return network, dims or network.trunk.num_features
    # The last norm of every residual branch starts at zero: without it, an entropy weight of 30 does not train (paper).
    resnet: tv.ResNet = _RESNETS[name](zero_init_residual=True)
    channels = resnet.fc.in_features
    resnet.avgpool, resnet.fc = GeM(exponent), nn.Identity()
    if pretrained:
        # The same networks with the same keys.
        resnet.load_state_dict(_timm_trunk(name, pretrained).state_dict())
    resnet.fc = _projection(channels, dims)
    assert isinstance(resnet, nn.Module)
    return resnet, dims or channels


def _timm_trunk(name: str, pretrained: bool) -> Any:
    create = partial(timm.create_model, name, pretrained=pretrained, num_classes=0)
    try:
        try:
            return create(dynamic_img_size=True)
        except TypeError:  # only transformers have to be told to take images of any size
            return create()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"no pretrained weights for the backbone {name!r} ({type(error).__name__}): run once where huggingface.co "
            f"can be reached, or set `pretrained: false`"
        ) from None


def _projection(channels: int, dims: int | None) -> nn.Module:
    if dims is None:
        return nn.Identity()
    linear = nn.Linear(channels, dims)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
