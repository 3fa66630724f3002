"""Turn a checkpoint into a weight file that can be shipped: float16 tensors, no optimiser, facts in its header.

python -m experiments.watermark_segmentation.publish RUN/checkpoints/last.ckpt OUTPUT.safetensors
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from experiments.cli import answer
from experiments.export import load_module
from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule
from lightning_modules.weights import read_metadata, save_weights


def publish(checkpoint: Path, output: Path) -> None:
    """Write the weights of a checkpoint with what is needed to build their module again."""
    if output.exists():
        raise FileExistsError(f"{output} is there already: remove it or name another file")
    module = load_module(checkpoint)
    if not isinstance(module, WatermarkSegmentationModule):
        raise ValueError(f"{checkpoint} is of {type(module).__name__}: name one of watermark segmentation")
    hyper_parameters = {
        key: value
        for key, value in read_metadata(checkpoint)["hyper_parameters"].items()
        if not key.startswith("_") and key not in ("weights", "encoder_weights")
    }
    metadata = {
        "class_path": f"{type(module).__module__}.{type(module).__qualname__}",
        "hyper_parameters": hyper_parameters,
        "calibration": {"threshold": module.threshold},
        "license": "MIT",
        "sealmark": version("sealmark"),
    }
    save_weights(module.network, output, metadata, half=True)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, threshold {module.threshold}")


def main(words: Sequence[str] | None = None) -> None:
    """Write the file that was named."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    asked = parser.parse_args(words)
    publish(asked.checkpoint, asked.output)


if __name__ == "__main__":
    raise SystemExit(answer(main))
