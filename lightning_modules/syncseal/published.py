"""Published files: training checkpoints and TorchScript files, read as data; and checkpoints written in that layout."""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from lightning_modules.functional.plain_json import parse_json, quoted
from lightning_modules.functional.plain_pickles import check_archive, load_plain, plain_items
from lightning_modules.functional.sync_reliability import finite
from lightning_modules.torchscript import is_torchscript
from lightning_modules.weights import check_fit, read_weights

from .embedder import EmbedderVariant
from .network import SCALING_I, SCALING_W, SIZE, SyncNetwork

METADATA_KEY = "sealmark.json"
"""Entry of an exported file that says what is in it."""
MOST_SIZE = 4096  # memory at prediction goes by its square, and a file could name any
ARGUMENT_CHARACTERS = 100_000  # the published text has a few thousand, and parsing takes seconds a megabyte
_UNET = "embedder.unet."
_CONVNEXT = "detector.convnext."
_BATCH_NORM = f"{_UNET}inc.double_conv.1.running_mean"
_KINDS: dict[EmbedderVariant, tuple[str, str]] = {"gelu_group": ("gelu", "group"), "relu_batch": ("relu", "batch")}


@dataclass(frozen=True)
class PublishedFile:
    """What a published file holds."""

    path: str
    tensors: dict[str, Tensor]
    """The network's, by the keys of its state dict."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Those of its training; of a TorchScript file of ours, strength and size; of one of others nothing."""
    discriminator: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0


def is_published(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a published checkpoint or TorchScript file of this method, by what is in it."""
    file = Path(path)
    if not file.is_file() or file.suffix == ".safetensors":
        return False
    try:
        if is_torchscript(file):
            return _fits(read_weights(file)[0])
        content = _content(file)
    except ValueError:
        return False
    return isinstance(content.get("model"), Mapping) and _fits(_plain(content["model"]))


def read_published(path: str | os.PathLike[str]) -> PublishedFile:
    """Return what a published file holds; nothing in it is executed, and no other file is needed."""
    file = Path(path)
    if file.is_file() and is_torchscript(file):
        return PublishedFile(str(path), read_weights(file)[0], _export_facts(file))
    content = _content(file)
    if not isinstance(content.get("model"), Mapping):
        raise ValueError(f"{path} is no published SyncSeal checkpoint: it has no `model`")
    return PublishedFile(
        path=str(path),
        tensors=_plain(content["model"]),
        arguments=_arguments(content.get("args"), path),
        discriminator=_plain(content.get("discriminator") or {}),
        epoch=_epoch(content.get("epoch"), path),
    )


def read_network(path: str | os.PathLike[str], **changes: Any) -> SyncNetwork:
    """Return the network of a published checkpoint or TorchScript file, in eval mode.

    Args:
        path: The file. A TorchScript file of others does not say its strength and size: the published ones are taken.
        **changes: Arguments of `SyncNetwork` that are to differ, such as ``scaling_w``.
    """
    published = read_published(path)
    network = SyncNetwork(**(network_arguments(published) | changes))
    load_published(network, published)
    return network.eval()


def network_arguments(published: PublishedFile) -> dict[str, Any]:
    """Return the arguments of the `SyncNetwork` that a published file belongs to."""
    if not _fits(published.tensors):
        raise ValueError(f"{published.path} is no published SyncSeal file: it has no {_UNET}* and {_CONVNEXT}* tensors")
    told = published.arguments
    try:
        found = recognise(published.tensors, str(told.get("attenuation", "jnd_1_1"))) | {
            "scaling_w": finite(told.get("scaling_w", SCALING_W)),
            "scaling_i": finite(told.get("scaling_i", SCALING_I)),
            "size": int(told.get("img_size_proc") or told.get("img_size") or SIZE),
        }
        if not 0 < found["size"] <= MOST_SIZE:
            raise ValueError(f"networks that see pictures of {found['size']} pixels a side")
        check_fit(lambda: SyncNetwork(**found), published.tensors)
    except (KeyError, ValueError, TypeError, ArithmeticError, IndexError, RuntimeError) as error:
        raise ValueError(f"{published.path} is no whole published SyncSeal file: {quoted(str(error))}") from None
    return found


def recognise(tensors: Mapping[str, Tensor], attenuation: str = "jnd_1_1") -> dict[str, Any]:
    """Return the architecture that a state dict's keys and shapes tell.

    Args:
        tensors: The state dict.
        attenuation: The map's name; how many channels it gives is in no tensor.
    """
    levels = _count(tensors, f"{_UNET}downs.")
    stages = _count(tensors, f"{_CONVNEXT}stages.")
    has_map = "attenuation.conv_x.weight" in tensors
    return {
        "embedder": "relu_batch" if _BATCH_NORM in tensors else "gelu_group",
        "embedder_channels": (
            len(tensors[f"{_UNET}inc.res_conv.weight"]),
            *(len(tensors[f"{_UNET}downs.{level}.down.weight"]) for level in range(levels)),
        ),
        "embedder_blocks": _count(tensors, f"{_UNET}bottleneck.model."),
        "detector_depths": tuple(_count(tensors, f"{_CONVNEXT}stages.{stage}.") for stage in range(stages)),
        "detector_dims": tuple(len(tensors[f"{_CONVNEXT}stages.{stage}.0.dwconv.weight"]) for stage in range(stages)),
        "detector_outputs": len(tensors["detector.head.linear.weight"]),
        "attenuation": attenuation if has_map else "none",
    }


def load_published(network: SyncNetwork, published: PublishedFile, discriminator: nn.Module | None = None) -> None:
    """Load a published file strictly into a network made with its arguments, and its discriminator where given."""
    wanted = network_arguments(published)
    made = network.arguments
    names = [name for name in wanted if name not in ("scaling_w", "scaling_i")]
    if other := [f"{name} {wanted[name]}" for name in names if made[name] != wanted[name]]:
        raise ValueError(f"{published.path} was made with {', '.join(other)}: give the model the same")
    _load(network, published.tensors, published.path)
    if discriminator is not None and published.discriminator:
        _load(discriminator, published.discriminator, published.path)


def key_map_into(module: nn.Module) -> Callable[[str], str]:
    """Return the ``key_map`` with which `load_weights` takes a TorchScript file's tensors.

    Args:
        module: A `SyncNetwork`, or a module that has one as ``network``.
    """
    within = "network." if any(key.startswith("network.") for key in module.state_dict()) else ""

    def placed(key: str) -> str:
        return key if key.startswith(within) else within + key

    return placed


def write_published(
    network: SyncNetwork,
    path: str | os.PathLike[str],
    discriminator: nn.Module | None = None,
    epoch: int = 0,
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint in the published layout, whole or not at all, and the three YAML files that it names.

    Args:
        network: What to write.
        path: The checkpoint; the YAML files of the architecture go beside it.
        discriminator: Its partner in training.
        epoch: The next one.
        arguments: More of the training's arguments.
    """
    made = network.arguments
    if made["detector_outputs"] != 9 or made["jnd_border"] != "zero" or made["attenuation"] == "none":
        raise ValueError(
            "the published layout knows detectors of 9 outputs and attenuation with a zero border alone, got "
            f"detector_outputs {made['detector_outputs']}, attenuation {made['attenuation']} and jnd_border "
            f"{made['jnd_border']}"
        )
    configs = _architecture_files(made)
    named = {f"{name}_config": f"{name}.yaml" for name in configs} | {
        "embedder_model": configs["embedder"]["model"],
        "extractor_model": configs["extractor"]["model"],
        "attenuation": made["attenuation"],
        "img_size": made["size"],
        "img_size_proc": made["size"],
        "scaling_w": made["scaling_w"],
        "scaling_i": made["scaling_i"],
    }
    content = {
        "epoch": epoch,
        "model": _state(network),
        "discriminator": OrderedDict() if discriminator is None else _state(discriminator),
        "optimizer": {},
        "optimizer_d": {},
        "scheduler": None,
        "scheduler_d": None,
        "args": yaml.safe_dump({**(arguments or {}), **named}, sort_keys=False),
    }
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    for name, config in configs.items():
        (file.parent / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        torch.save(content, partial)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _architecture_files(made: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the content of the YAML files that the reference builds the networks from."""
    activation, norm = _KINDS[made["embedder"]]
    first, dims = made["embedder_channels"][0], list(made["detector_dims"])
    if any(channels % first for channels in made["embedder_channels"]):
        raise ValueError(f"the published layout has multiples of {first} channels, got {made['embedder_channels']}")
    # A name without "yuv" would make the reference's embedder look at colours.
    embedder = "unet_small2_yuv" if activation == "gelu" else "unet_small2_yuv_quantizable"
    inputs, outputs = (int(part) for part in made["attenuation"].split("_")[1:])
    return {
        "embedder": {
            "model": embedder,
            embedder: {
                "in_channels": 1,
                "out_channels": 1,
                "z_channels": first,
                "num_blocks": made["embedder_blocks"],
                "activation": activation,
                "normalization": norm,
                "z_channels_mults": [channels // first for channels in made["embedder_channels"]],
                "last_tanh": True,
            },
        },
        "extractor": {
            "model": "convnext_tiny",
            "convnext_tiny": {
                "encoder": {"depths": list(made["detector_depths"]), "dims": dims},
                "head": {"embed_dim": dims[-1], "out_dim": made["detector_outputs"] - 1},
            },
        },
        "attenuation": {made["attenuation"]: {"in_channels": inputs, "out_channels": outputs}},
    }


def _content(file: Path) -> dict[str, Any]:
    # Mapped, so that the optimiser's states, two thirds of the file, are not read.
    return plain_items(load_plain(file, mapped=True))


def _epoch(value: Any, path: str | os.PathLike[str]) -> int:
    if value is not None and not isinstance(value, int):
        raise ValueError(f"{path} is no published SyncSeal checkpoint: its `epoch` is no number")
    return value or 0


def _export_facts(file: Path) -> dict[str, Any]:
    """Return what an export of ours says beside its tensors; nothing of files of others."""
    check_archive(file)
    with zipfile.ZipFile(file) as archive:
        entries = [name for name in archive.namelist() if name.endswith(f"/extra/{METADATA_KEY}")]
        try:
            text = archive.read(entries[0]) if entries else b"{}"
        # Names that are no text, and an entry that ends early.
        except (zipfile.BadZipFile, UnicodeDecodeError, EOFError) as error:
            raise ValueError(f"{file} is not a whole TorchScript file ({quoted(str(error))}): copy it again") from None
    facts = parse_json(text, f"{file}, {METADATA_KEY}")
    known = ("scaling_w", "scaling_i", "img_size", "attenuation")
    return {name: facts[name] for name in known if name in facts} if isinstance(facts, dict) else {}


def _arguments(text: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        arguments = _plain_yaml(text) if isinstance(text, str) else None
    # Dates that there are not are a ValueError; RecursionError: brackets in brackets in brackets.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its `args` are no plain YAML: {quoted(' '.join(str(error).split()))}") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"{path} is no published SyncSeal checkpoint: its `args` are no YAML mapping")
    return arguments


def _plain_yaml(text: str) -> Any:
    """Parse YAML that is short and names nothing twice: merged aliases of aliases grow without end."""
    if len(text) > ARGUMENT_CHARACTERS:
        raise ValueError(f"{len(text)} characters")
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
        raise ValueError("it has aliases")
    return yaml.safe_load(text)


def _plain(state: Any) -> dict[str, Tensor]:
    """Return the tensors of a state dict without the prefix that data-parallel training puts before them."""
    named = ((key, value) for key, value in plain_items(state).items() if isinstance(key, str))
    return {key.removeprefix("module."): value for key, value in named if isinstance(value, Tensor)}


def _state(module: nn.Module) -> OrderedDict[str, Tensor]:
    return OrderedDict((key, value.detach().cpu().clone()) for key, value in module.state_dict().items())


def _fits(keys: Iterable[str]) -> bool:
    found = set(keys)
    return f"{_UNET}outc.weight" in found and "detector.head.linear.weight" in found


def _count(keys: Iterable[str], prefix: str) -> int:
    """Return how many numbered parts follow a prefix."""
    return len({key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)})


def _load(module: nn.Module, tensors: Mapping[str, Tensor], path: str) -> None:
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit: {shorten(str(error), 400)}") from None
