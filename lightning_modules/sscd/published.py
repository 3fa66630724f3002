"""The published weight files: their two key layouts, and the architecture that a file's shapes tell."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

_TO_TORCHVISION = {
    "backbone.initial_block._module.0.": "backbone.conv1.",
    "backbone.initial_block._module.1.": "backbone.bn1.",
    "embeddings.1.": "backbone.fc.",
}
_INSIDE_BLOCK = {
    "convolutional_block.0.": "conv1.",
    "convolutional_block.1.": "bn1.",
    "convolutional_block.3.": "conv2.",
    "convolutional_block.4.": "bn2.",
    "convolutional_block.6.": "conv3.",
}
_CLASSY_BLOCK = re.compile(r"backbone\.blocks\.(\d)\.block\d-(\d+)\.(.*)")
_TORCHVISION_BLOCK = re.compile(r"backbone\.layer(\d)\.(\d+)\.(.*)")
_WRAPPERS = ("model.", "module.", "_orig_mod.", "network.")
_BACKBONES: dict[tuple[tuple[int, ...], bool, int], str] = {
    ((2, 2, 2, 2), False, 64): "resnet18",
    ((3, 4, 6, 3), True, 64): "resnet50",
    ((3, 4, 23, 3), True, 4): "resnext101_32x4d",
    ((3, 4, 23, 3), True, 8): "resnext101_32x8d",
}


def key_map_into(module: nn.Module) -> Callable[[str], str]:
    """Return the ``key_map`` with which `load_weights` takes a file of any published layout.

    Args:
        module: A `DescriptorNetwork`, or a module that has one as ``network``.
    """
    keys = list(module.state_dict())
    within = "network." if any(key.startswith("network.") for key in keys) else ""
    return partial(_placed, deep=has_deep_blocks(keys), within=within)


def torchvision_key(key: str, deep: bool) -> str:
    """Return the name in torchvision's layout of an entry in either layout, without what wrappers put before it.

    Args:
        key: The entry's name in the file.
        deep: Whether blocks have three convolutions: Classy Vision's layout does not number a block's last norm.
    """
    while key.startswith(_WRAPPERS):
        key = key.split(".", 1)[1]
    match = _CLASSY_BLOCK.fullmatch(key)
    if match is None:
        return _exchanged(key, _TO_TORCHVISION)
    stage, block, rest = match.groups()
    inside = _INSIDE_BLOCK | {"bn.": "bn3." if deep else "bn2."}
    return f"backbone.layer{int(stage) + 1}.{block}.{_exchanged(rest, inside)}"


def classy_key(key: str, deep: bool) -> str:
    """Return the name in Classy Vision's layout of an entry in torchvision's."""
    match = _TORCHVISION_BLOCK.fullmatch(key)
    if match is None:
        return _exchanged(key, {ours: classy for classy, ours in _TO_TORCHVISION.items()})
    stage, block, rest = int(match[1]) - 1, match[2], match[3]
    inside = {"bn3." if deep else "bn2.": "bn."} | {ours: classy for classy, ours in _INSIDE_BLOCK.items()}
    if not deep:
        inside["bn2."] = "bn."
    return f"backbone.blocks.{stage}.block{stage}-{block}.{_exchanged(rest, inside)}"


def has_deep_blocks(keys: Iterable[str]) -> bool:
    """Return whether blocks have three convolutions, in either layout."""
    return any(".conv3." in key or ".convolutional_block.6." in key for key in keys)


def recognise(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the ``backbone`` and ``dims`` that a file in either layout was made for; no projection, no ``dims``.

    The exponent of the pooling is in no file; the published ones use 3.
    """
    deep = has_deep_blocks(tensors)
    shapes = {torchvision_key(key, deep): tuple(value.shape) for key, value in tensors.items()}
    blocks = {tuple(key.split(".")[1:3]) for key in shapes if key.startswith("backbone.layer")}
    depths = tuple(sum(stage == f"layer{n}" for stage, _ in blocks) for n in (1, 2, 3, 4))
    inputs = shapes.get("backbone.layer1.0.conv2.weight", (0, 0))[1]
    backbone = _BACKBONES.get((depths, deep, inputs))
    if backbone is None:
        raise ValueError(f"no published architecture has stages of {depths} blocks: name `backbone` and `dims`")
    return {"backbone": backbone, "dims": shapes.get("backbone.fc.weight", (None,))[0]}


def _placed(key: str, deep: bool, within: str) -> str:
    return within + torchvision_key(key, deep)


def _exchanged(key: str, prefixes: Mapping[str, str]) -> str:
    prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
    return key if prefix is None else prefixes[prefix] + key.removeprefix(prefix)
