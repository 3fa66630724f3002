"""Turn a checkpoint into a weight file that can be shipped: float16 tensors, no optimiser, facts in its header.

python -m experiments.watermark_segmentation.publish RUN/checkpoints/last.ckpt [OUTPUT.safetensors]
"""

import sys
from importlib.metadata import version
from pathlib import Path

from experiments.export import load_module
from lightning_modules.watermark_segmentation.module import SHIPPED_WEIGHTS, WatermarkSegmentationModule
from lightning_modules.weights import read_metadata, save_weights


def publish(checkpoint: Path, output: Path) -> None:
    """Write the weights of a checkpoint with what is needed to build their module again."""
    module = load_module(checkpoint)
    assert isinstance(module, WatermarkSegmentationModule)
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


if __name__ == "__main__":
    publish(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else SHIPPED_WEIGHTS)
