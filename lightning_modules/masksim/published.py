"""Published files: checkpoints of one detector each, and weights of its denoiser."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_modules.functional.plain_json import quoted
from lightning_modules.functional.plain_pickles import load_plain, plain_items
from lightning_modules.weights import check_fit, read_weights

from .bank import DetectorBank, Trunk, distinct_trunks, trunk_of_detector
from .denoiser import DEPTH, WIDTH, DnCNN, recognise_denoiser
from .heads import HeadBank
from .network import MaskSimNetwork

_DENOISER = "preproc.model."
_DENOISER_PREFIXES = (_DENOISER, "denoiser.model.", "trunks.0.preproc.model.", "model.", "")


def is_published(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether these are the tensors of a published detector."""
    return "clf_a" in tensors and "mask_pre_activ_list.0" in tensors


def read_detector(path: str | Path) -> MaskSimNetwork:
    """Return the detector of a published checkpoint in eval mode; the shapes in it tell how it was made."""
    tensors, _ = read_weights(path)
    if not is_published(tensors):
        raise ValueError(f"{path} is no published MaskSim detector: it has no clf_a and mask_pre_activ_list.0")
    return detector_of(tensors, str(path))


def detector_of(tensors: Mapping[str, Tensor], path: str) -> MaskSimNetwork:
    """Return the detector that a published state dict belongs to, with its weights, in eval mode."""
    try:
        arguments = recognise(tensors)
        check_fit(lambda: MaskSimNetwork(**arguments), tensors)
        network = MaskSimNetwork(**arguments)
        network.load_state_dict(dict(tensors))
    except (KeyError, RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is no whole published MaskSim detector: {quoted(str(error))}") from None
    box = network.mask_conv.weight
    if not torch.allclose(box, torch.full_like(box, 1 / box[0].numel())):
        raise ValueError(f"{path}: mask_conv.weight is no mean filter, which a published detector always has")
    return network.eval()


def recognise(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of the `MaskSimNetwork` that a published state dict was made by."""
    channels, side, _ = tensors["mask_pre_activ_list.0"].shape
    kind, depth, width = "identity", DEPTH, WIDTH
    if f"{_DENOISER}0.weight" in tensors:
        kind = "dncnn"
        denoiser = {key.removeprefix(_DENOISER): value for key, value in tensors.items() if key.startswith(_DENOISER)}
        _, depth, width = recognise_denoiser(denoiser)
        side += 2 * depth
    elif "preproc.0.weight" in tensors:
        kind = "linear3x3"
    elif "conv_filter.weight" in tensors:
        kind = "cross_diff"
    return {
        "img_size": side,
        "preprocess": kind,
        "num_masks": sum(key.startswith("mask_pre_activ_list.") for key in tensors),
        "kernel_size": tensors["mask_conv.weight"].shape[-1],
        "channels": channels,
        "denoiser_depth": depth,
        "denoiser_width": width,
    }


def generator_of(path: Path) -> str:
    """Return the generator in the name of a published checkpoint, such as sd1-epoch=07-valid_auroc=0.99.ckpt."""
    return path.stem.split("-epoch")[0]


def find_detectors(weights: str | Sequence[str]) -> dict[str, Path]:
    """Return the checkpoints of a file, several or a folder by the generators in their names."""
    named = [weights] if isinstance(weights, str) else list(weights)
    files = [file for name in named for file in (sorted(Path(name).glob("*.ckpt")) if Path(name).is_dir() else [name])]
    if not files:
        raise FileNotFoundError(f"no .ckpt file in {', '.join(named)}")
    found: dict[str, Path] = {}
    for file in map(Path, files):
        if (name := generator_of(file)) in found:
            raise ValueError(f"{found[name]} and {file} are both of generator {name!r}: keep one of them")
        found[name] = file
    return found


def holds_published(weights: str | Sequence[str]) -> bool:
    """Return whether these are published checkpoints; several, and those of a folder, cannot be other ones."""
    return not isinstance(weights, str) or Path(weights).is_dir() or is_published(read_weights(weights)[0])


def load_bank(trunks: Sequence[Trunk], heads: HeadBank, files: Mapping[str, Path], wanted: Mapping[str, Any]) -> None:
    """Load published checkpoints into trunks, one for all heads or one a head, and heads.

    Args:
        trunks: Where preprocessing goes.
        heads: Where the rest goes.
        files: The file of each head, in their order, by generator.
        wanted: What the detectors must have been made with, by the names of their arguments.
    """
    networks = {path: read_detector(path) for path in files.values()}
    for path, network in networks.items():
        other = [f"{name} {found}" for name in wanted if (found := getattr(network, name)) != wanted[name]]
        if other:
            raise ValueError(f"{path} was made with {', '.join(other)}: give the model the same")
    different, _ = distinct_trunks([trunk_of_detector(network) for network in networks.values()])
    if len(trunks) == 1 < len(different):
        raise ValueError(f"{', '.join(map(str, networks))} have different denoisers: set model.shared_trunk to false")
    for trunk, network in zip(trunks, networks.values(), strict=False):
        trunk.load_detector(network)
    for head, network in enumerate(networks.values()):
        heads.load_detector(head, network)


def files_of_heads(generators: Sequence[str], found: Mapping[str, Path]) -> dict[str, Path]:
    """Return the file of each head; a single file is that of a single head, whatever its name."""
    if len(found) == len(generators) == 1:
        return dict(zip(generators, found.values(), strict=True))
    if missing := [name for name in generators if name not in found]:
        raise ValueError(f"no published file of {', '.join(missing)}: there are those of {', '.join(found)}")
    return {name: found[name] for name in generators}


def read_bank(weights: str | Sequence[str], half_denoiser: bool = False) -> DetectorBank:
    """Return the bank of published checkpoints: a file, several, or a folder of them."""
    detectors = [(name, read_detector(path)) for name, path in find_detectors(weights).items()]
    return DetectorBank.from_detectors(detectors, half_denoiser=half_denoiser)


def write_detector(network: MaskSimNetwork, path: str | Path, lr: float = 1e-3) -> None:
    """Write a detector as published checkpoints are, with tensors, names and numbers alone."""
    kinds = {"dncnn": "DnCNN"}
    arguments = {
        "img_size": network.img_size,
        "channels": network.norm_vector.num_features,
        "lr": lr,
        "kernel_sz": network.mask_conv.kernel_size[0],
        "preprocess": kinds.get(network.preprocess, network.preprocess),
        "num_masks": len(network.mask_pre_activ_list),
        "reference_pattern": None,
        "preproc_freeze": False,
    }
    content = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.0.2", "hparams_name": "kwargs"}
    torch.save(content | {"state_dict": network.state_dict(), "hyper_parameters": arguments}, path)


def read_denoiser(path: str | Path) -> dict[str, Tensor]:
    """Return a denoiser's tensors by the keys 0.weight, 0.bias, … of a published file or of ours."""
    tensors = _network_entry(path) or read_weights(path)[0]
    for prefix in _DENOISER_PREFIXES:
        if f"{prefix}0.weight" in tensors:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    raise ValueError(f"{path} holds no denoiser: none of its {len(tensors)} tensors is a first convolution 0.weight")


def load_denoiser(denoiser: DnCNN, path: str | Path) -> None:
    """Load a denoiser's weights; a file of other sizes is an error that names them."""
    tensors = read_denoiser(path)
    _, depth, width = recognise_denoiser(tensors)
    if (depth, width) != (denoiser.depth, denoiser.width):
        raise ValueError(
            f"{path} holds a denoiser of depth {depth} and width {width}: set denoiser_depth and _width so"
        )
    try:
        denoiser.model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the denoiser: {quoted(' '.join(str(error).split()))}") from None


def _network_entry(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict that the published denoiser file keeps under `network`; nothing of other files."""
    if not Path(path).is_file() or Path(path).suffix == ".safetensors":
        return {}
    try:
        content = load_plain(Path(path))
    except ValueError:  # `read_weights` says what is wrong with it
        return {}
    entry = plain_items(plain_items(content).get("network"))
    return {key: value for key, value in entry.items() if isinstance(key, str) and isinstance(value, Tensor)}
