"""The file formats of an export: how each is written, and how it is read back by someone without our code."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from lightning_modules.exporting import ExportProgram

ExportFormat = Literal["torchscript", "onnx", "pt2"]
METADATA_KEY = "sealmark.json"
OPSET = 18  # the first with antialiased resizing; every onnxruntime of the last three years has it
# Sides that are no multiple of anything, so that the exporters find no coincidence to hold on to.
_EXAMPLE_SHAPE = (2, 3, 75, 131)


def write_torchscript(program: ExportProgram, metadata: dict[str, Any], path: Path) -> None:
    """Write a traced module that `torch.jit.load` reads; the metadata is its extra file."""
    with _quiet():
        traced = torch.jit.trace(program.network, _example(), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path), _extra_files={METADATA_KEY: json.dumps(metadata)})


def read_torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the function in a TorchScript file."""
    with _quiet():
        loaded: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    return loaded


def write_pt2(program: ExportProgram, metadata: dict[str, Any], path: Path) -> None:
    """Write an exported program that `torch.export.load` reads; the metadata is its extra file."""
    with _quiet():
        exported = torch.export.export(program.network, (_example(),), dynamic_shapes=(_free(program),))
        torch.export.save(exported, path, extra_files={METADATA_KEY: json.dumps(metadata)})


def read_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the function in a .pt2 file."""
    with _quiet():
        function: nn.Module = torch.export.load(path).module()
    return function


def write_onnx(program: ExportProgram, metadata: dict[str, Any], path: Path) -> None:
    """Write an ONNX model with its weights inside; the metadata are its metadata_props."""
    _need_onnx()
    with _quiet():
        exported = torch.onnx.export(
            program.network,
            (_example(),),
            dynamo=True,
            dynamic_shapes=(_free(program),),
            input_names=[program.input_name],
            output_names=[program.output_name],
            opset_version=OPSET,
            verbose=False,
        )
        assert exported is not None
        exported.model.metadata_props.update({key: _text(value) for key, value in metadata.items()})
        exported.save(path, external_data=False)


def read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the function in an ONNX file, as onnxruntime computes it on the CPU."""
    _need_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def call(image: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {name: image.numpy()})[0]))

    return call


Writer = Callable[[ExportProgram, dict[str, Any], Path], None]
Reader = Callable[[Path], Callable[[Tensor], Tensor]]
FORMATS: dict[ExportFormat, tuple[Writer, Reader]] = {
    "torchscript": (write_torchscript, read_torchscript),
    "onnx": (write_onnx, read_onnx),
    "pt2": (write_pt2, read_pt2),
}


def _example() -> Tensor:
    return torch.rand(_EXAMPLE_SHAPE, generator=torch.Generator().manual_seed(0))


def _free(program: ExportProgram) -> dict[int, Any]:
    low = program.min_side
    return {0: Dim("batch", min=1), 2: Dim("height", min=low), 3: Dim("width", min=low)}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _need_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"ONNX needs the package {error.name}: pip install 'sealmark[export]'") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress and their deprecation notes from the terminal; errors come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
