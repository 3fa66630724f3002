"""`sealmark export`: one self-contained file of a trained module, checked to answer as the module does."""

from __future__ import annotations

import datetime
import importlib
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from experiments.export_formats import FORMATS, ExportFormat
from lightning_modules.base import ProvenanceModule
from lightning_modules.exporting import ExportProgram
from lightning_modules.functional.plain_json import quoted
from lightning_modules.syncseal.module import SyncSealModule
from lightning_modules.syncseal.published import is_published, network_arguments, read_published
from lightning_modules.weights import load_weights, read_metadata

TOLERANCE = 1e-4
OTHER_FILES = ("weights", "encoder_weights", "denoiser_weights", "wam")
SHIPPED_WEIGHTS = Path(__file__).parent / "watermark_segmentation" / "weights"
# (batch, height, width): multiples of the usual strides and odd ones, upright and lying, larger and smaller.
CHECK_SHAPES = ((1, 64, 64), (2, 97, 131), (1, 224, 160), (2, 33, 200), (1, 256, 320))


def export(
    output: Path,
    ckpt_path: Path | None = None,
    format: ExportFormat = "onnx",
    overwrite: bool = False,
    module: str | None = None,
    hparams: dict[str, Any] | None = None,
) -> None:
    """Write one self-contained file, then read it back and compare its answers with the module's.

    Scaling of pixels and activation are inside, and facts such as the threshold are in the file's metadata. A file
    that answers differently is not left behind.

    Args:
        output: The file to write.
        ckpt_path: A checkpoint or a .safetensors file of ours, or a checkpoint or TorchScript file of SyncSeal's
            authors; the shipped weights where none is named.
        format: torchscript for torch.jit.load, onnx for onnxruntime and others, pt2 for torch.export.load.
        overwrite: Replace an existing file.
        module: Class path of the module, for files that do not say which made them.
        hparams: Hyper-parameters that the file lacks or that are to differ from its own.
    """
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder: name a file in it")
    if output.exists() and not overwrite:
        raise FileExistsError(f"--output {output} exists: name another file or give --overwrite true")
    source = ckpt_path or find_shipped_weights()
    if ckpt_path is None:
        print(f"no --ckpt_path named: using the shipped weights {os.path.relpath(source)}", file=sys.stderr)
    trained = load_module(source, module, hparams)
    make_program = getattr(trained, "export_program", None)
    if make_program is None:
        raise ValueError(f"{type(trained).__name__} cannot be exported: it has no `export_program`")
    program: ExportProgram = make_program()
    difference = write_checked(program, _metadata(program, source, format), format, output)
    size = output.stat().st_size / 1e6
    print(f"{output}: {format}, {size:.1f} MB; largest difference to the module {difference:.1e}")


def find_shipped_weights() -> Path:
    """Return the weights that come with the project."""
    files = sorted(SHIPPED_WEIGHTS.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no weights are shipped in {SHIPPED_WEIGHTS}: name a checkpoint with --ckpt_path")
    return files[-1]


def load_module(path: Path, class_path: str | None = None, hparams: dict[str, Any] | None = None) -> ProvenanceModule:
    """Return the module of a weight file in eval mode; only classes under `lightning_modules` are built.

    Files that SyncSeal's authors publish say by what is in them how their module is made.
    """
    if class_path is None and is_published(path):
        arguments = network_arguments(read_published(path)) | {"weights": str(path), "disc_weight": 0.0}
        return _made(SyncSealModule, arguments, hparams or {}).eval()
    metadata = read_metadata(path)
    stored = dict(metadata.get("hyper_parameters") or {})
    stored.pop("_instantiator", None)
    named = stored.pop("_class_path", None) or metadata.get("class_path")
    cls = _module_class(class_path or named, path)
    # What the file holds replaces any weights that training started from; and no file names a program to run.
    module = _made(cls, stored | dict.fromkeys(OTHER_FILES), hparams or {})
    load_weights(module, path, key_map=module.weights_key_map)
    module.on_load_checkpoint(metadata)
    return module.eval()


def _made(cls: type[ProvenanceModule], stored: dict[str, Any], hparams: dict[str, Any]) -> ProvenanceModule:
    """Return a module of what its file says, where the caller says nothing else."""
    known = inspect.signature(cls).parameters
    unknown = sorted(set(hparams) - set(known))
    if unknown:
        raise ValueError(f"--hparams {', '.join(unknown)}: no such argument of {cls.__name__}")
    arguments = stored | hparams
    try:
        return cls(**{key: value for key, value in arguments.items() if key in known})
    except (TypeError, AttributeError, KeyError, IndexError, ArithmeticError, RuntimeError) as error:
        raise ValueError(
            f"{cls.__name__} cannot be made with the hyper-parameters of its file ({quoted(str(error))}): correct "
            "them with --hparams"
        ) from error


def write_checked(program: ExportProgram, metadata: dict[str, Any], format: ExportFormat, output: Path) -> float:
    """Write the file, compare it with the program on random inputs, and return the largest difference.

    The file gets its name only when it has passed.
    """
    write, read = FORMATS[format]
    output.parent.mkdir(parents=True, exist_ok=True)
    # The exporters look at the ending, so it stays.
    temporary = output.with_name(f".{os.getpid()}.{output.name}")
    try:
        with torch.no_grad():
            with _explained(f"{format} export to {output} failed"):
                write(program, metadata, temporary)
            with _explained(f"the {format} file just made for {output} does not work"):
                difference = largest_difference(program, read(temporary))
        # Not `>`: a difference that is no number fails too.
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the {format} file answers differently from the module, by up to {difference:.1e} where "
                f"{TOLERANCE:.0e} is allowed: nothing was written to {output}; try another --format"
            )
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def largest_difference(program: ExportProgram, answer: Callable[[Tensor], Tensor]) -> float:
    """Return the largest absolute difference between a program and a function over inputs of several sizes."""
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    for batch, height, width in CHECK_SHAPES:
        size = max(height, program.min_side), max(width, program.min_side)
        # Of 8 bits, as pictures are: between them a network that rounds its input answers by the last digit.
        image = torch.randint(0, 256, (batch, 3, *size), generator=generator) / 255
        # A file may answer with several tensors, as published ones do.
        for wanted, got in zip(tree_leaves(program.network(image)), tree_leaves(answer(image)), strict=True):
            if wanted.shape != got.shape:
                raise ValueError(f"{tuple(image.shape)} gives {tuple(got.shape)} instead of {tuple(wanted.shape)}")
            difference = float((wanted - got).abs().max())
            if difference != difference:
                return difference
            worst = max(worst, difference)
    return worst


def _module_class(class_path: str | None, path: Path) -> type[ProvenanceModule]:
    if class_path is None:
        raise ValueError(
            f"{path} does not say which module made it: name its class with --module, for instance "
            "lightning_modules.watermark_segmentation.module.WatermarkSegmentationModule"
        )
    package, _, name = str(class_path).rpartition(".")
    if not package.startswith("lightning_modules."):
        raise ValueError(f"{path} names the class {class_path}: only classes under `lightning_modules` are built")
    try:
        cls = getattr(importlib.import_module(package), name, None)
    except ImportError as error:
        raise ValueError(f"the class {class_path} named for {path} cannot be imported: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, ProvenanceModule)):
        raise ValueError(f"{class_path}, named for {path}, is no module of ours")
    return cls


def _metadata(program: ExportProgram, source: Path, format: ExportFormat) -> dict[str, Any]:
    try:
        own_version = version("sealmark")
    except PackageNotFoundError:
        own_version = "unknown"
    return program.metadata | {
        "sealmark_version": own_version,
        "torch_version": torch.__version__,
        "format": format,
        "weights": source.name,
        "command": shlex.join(["sealmark", *sys.argv[1:]]),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever an exporter raises into one line; a full disk keeps its own words."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{what}: {reason}") from error
