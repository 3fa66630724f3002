"""The segmentation network: normalisation, any smp architecture on any encoder, and its heads."""

import threading
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Final

import huggingface_hub.constants as hub
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

# Not asked of smp, which asks the model hub for them even where no weights are wanted.
from lightning_modules.functional.normalization import IMAGENET_MEAN, IMAGENET_STD

PROBE_SECONDS = 4.0


class WatermarkNetwork(nn.Module):
    """Maps RGB images in [0, 1] of any size to mask logits of the same size.

    The state dict holds ``mean``, ``std`` and ``model.*``, which is the layout of the reference's released file for
    ``Unet`` on ``mit_b5``. Encoders named ``mit_*`` are for non-commercial use: smp's Mix-Transformer code carries the
    NVIDIA Source Code License, and so do its weights.

    Args:
        architecture: Name of an smp architecture, such as ``Unet``, ``FPN`` or ``Segformer``.
        encoder: Name of an smp encoder, or ``tu-`` and the name of a timm model.
        encoder_weights: ``imagenet``, or None for random ones. Where the weights are neither in the local cache nor
            quickly reachable, a warning says so and the encoder stays random.
        encoder_depth: Number of encoder stages; the architecture's own where None.
        decoder_channels: Channels of the decoder's blocks; the architecture's own where None.
        decoder_norm: Norm of the decoder's blocks; the architecture's own where None.
        alpha_head: Whether to predict the mark's opacity.
        color_head: Whether to predict the mark's colour.
    """

    stride: Final[int] = 32
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        architecture: str = "Unet",
        encoder: str = "tu-resnet10t",
        encoder_weights: str | None = None,
        encoder_depth: int | None = None,
        decoder_channels: list[int] | None = None,
        decoder_norm: str | None = None,
        alpha_head: bool = False,
        color_head: bool = False,
    ) -> None:
        super().__init__()
        self.alpha_head = alpha_head
        self.color_head = color_head
        options: dict[str, object] = {"in_channels": 3, "classes": 1 + alpha_head + 3 * color_head}
        if encoder_depth is not None:
            options["encoder_depth"] = encoder_depth
        if decoder_channels is not None:
            options["decoder_channels"] = list(decoder_channels)
        if decoder_norm is not None:
            options["decoder_use_norm"] = decoder_norm
        self.model = build_smp_model(architecture, encoder, encoder_weights, options)
        if encoder_depth is not None:
            _freeze_unused(self.model)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return the mask logits (B, 1, H, W) of images (B, 3, H, W)."""
        return self.all_logits(image)[:, :1]

    def all_logits(self, image: Tensor) -> Tensor:
        """Return the logits of every head, (B, 1 + alpha + 3 colour, H, W)."""
        height, width = image.shape[-2], image.shape[-1]
        # Replicated borders, unlike reflected ones, exist for every size, down to one pixel. Padding and cropping are
        # index lookups because F.pad and slices make torch.export ask whether a size is a multiple of the stride.
        below = (height + self.stride - 1) // self.stride * self.stride
        right = (width + self.stride - 1) // self.stride * self.stride
        rows = torch.arange(below, device=image.device)
        columns = torch.arange(right, device=image.device)
        padded = image.index_select(2, rows.clamp(max=height - 1)).index_select(3, columns.clamp(max=width - 1))
        logits: Tensor = self.model((padded - self.mean) / self.std)
        if self.training:
            # The same crop, with a cheaper backward pass.
            return logits[..., :height, :width]
        rows = torch.arange(height, device=image.device)
        columns = torch.arange(width, device=image.device)
        return logits.index_select(2, rows).index_select(3, columns)

    def forward_heads(self, image: Tensor) -> dict[str, Tensor]:
        """Return ``mask_logits`` and, of the heads that are on, ``alpha`` and ``color`` in [0, 1]."""
        logits = self.all_logits(image)
        heads = {"mask_logits": logits[:, :1]}
        if self.alpha_head:
            heads["alpha"] = logits[:, 1:2].sigmoid()
        if self.color_head:
            heads["color"] = logits[:, -3:].sigmoid()
        return heads


def build_smp_model(
    architecture: str, encoder: str, encoder_weights: str | None, options: dict[str, object]
) -> nn.Module:
    """Return the smp model, with pretrained encoder weights if they are wanted and can be had."""
    _check_names(architecture, encoder)
    model = None
    if encoder_weights is not None:
        model = _build_pretrained(architecture, encoder, encoder_weights, options)
    if model is None:
        model = smp.create_model(architecture, encoder, encoder_weights=None, **options)
    # WatermarkNetwork pads; smp's own check would only put conditions on sizes into exported graphs.
    model.requires_divisible_input_shape = False
    assert isinstance(model, nn.Module)
    return model


def _freeze_unused(model: nn.Module) -> None:
    """Stop gradients to the stages that a shallow encoder keeps without using them.

    Data parallel training waits for every gradient: one that never comes leaves all the others unsynchronised.
    """
    training = model.training
    parameters = list(model.parameters())
    output = model.eval()(torch.zeros(1, 3, 64, 64))
    gradients = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    model.train(training)


def _check_names(architecture: str, encoder: str) -> None:
    known = {name.lower(): name for name in _architectures()}
    if architecture.lower() not in known:
        raise ValueError(f"`architecture` {architecture!r} is not one of smp's: {', '.join(known.values())}")
    if encoder.startswith("tu-"):
        name = encoder.removeprefix("tu-").split(".")[0]
        if not timm.is_model(name):
            close = [f"tu-{match}" for match in get_close_matches(name, timm.list_models(), 4)]
            raise ValueError(f"`encoder` {encoder!r} is not a timm model; close names: {', '.join(close)}")
    elif not encoder.startswith("timm-") and encoder not in smp.encoders.encoders:
        close = get_close_matches(encoder, list(smp.encoders.encoders), 4)
        raise ValueError(f"`encoder` {encoder!r} is not known to smp; close names: {', '.join(close)}")


def _architectures() -> list[str]:
    return [model.__name__ for model in smp.MODEL_ARCHITECTURES_MAPPING.values()]


def _build_pretrained(
    architecture: str, encoder: str, encoder_weights: str, options: dict[str, object]
) -> nn.Module | None:
    """Build from the local cache, else from the hub if it answers, else warn and return None."""
    problem: Exception
    try:
        with _hub_offline():
            return _create(architecture, encoder, encoder_weights, options)
    except (OSError, RuntimeError, ValueError) as error:
        problem = error
    if _hub_answers():
        try:
            return _create(architecture, encoder, encoder_weights, options)
        except (OSError, RuntimeError, ValueError) as error:
            problem = error
    warnings.warn(
        f"no `{encoder_weights}` weights for the encoder {encoder!r} ({type(problem).__name__}): it starts from random "
        f"weights. Run once where {hub.ENDPOINT} is reachable, or copy its cache to {hub.HF_HUB_CACHE}, or set "
        f"`encoder_weights: null`.",
        stacklevel=2,
    )
    return None


def _create(architecture: str, encoder: str, encoder_weights: str, options: dict[str, object]) -> nn.Module:
    # smp wants a bool for timm's encoders, whose name tells which weights.
    weights = True if encoder.startswith("tu-") else encoder_weights
    model: nn.Module = smp.create_model(architecture, encoder, encoder_weights=weights, **options)
    return model


@contextmanager
def _hub_offline() -> Iterator[None]:
    before = hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    """Return whether the model hub answers within a few seconds; its client would retry for half a minute."""
    if hub.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []

    def probe() -> None:
        try:
            request = urllib.request.Request(hub.ENDPOINT, method="HEAD")  # noqa: S310
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS):  # noqa: S310
                answers.append(True)
        except OSError:
            return

    # A thread, because looking up a host name obeys no timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(answers)
