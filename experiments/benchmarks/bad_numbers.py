"""What looking for NaN and infinity adds to a training step.

    python -m experiments.benchmarks.bad_numbers [--threads N] [--steps N]

Steps of two quickstarts' networks on one batch of noise, in Lightning's own loop, whose profiler gives the time in the
hooks of `BadNumbers` and that of the step around them: both from the same run. On a GPU the look also waits for the
backward pass of each step, which is not measured here.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Trainer
from lightning.pytorch.profilers import SimpleProfiler
from torch.utils.data import DataLoader

from callbacks.bad_numbers import BadNumbers
from lightning_modules.base import ProvenanceModule
from lightning_modules.syncseal.module import SyncSealModule
from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule

CONFIGS = Path(__file__).parents[2] / "configs"
CASES: dict[str, Callable[..., ProvenanceModule]] = {
    "watermark_segmentation": WatermarkSegmentationModule,
    "syncseal": SyncSealModule,
}
HOOKS = ("train_batch_start", "before_backward", "after_backward")
WARM_UP = 3
Row = dict[str, float | str]


def batch_of(case: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return noise in the sizes of a recipe's batches."""
    data = recipe["data"]["init_args"]
    image = torch.rand(data["batch_size"], 3, data["size"], data["size"])
    mask = (image.mean(dim=1, keepdim=True) > 0.5).float()
    return {"image": image, "index": torch.arange(len(image))} | ({"mask": mask} if case != "syncseal" else {})


def measure(case: str, steps: int) -> Row:
    """Return medians in milliseconds of the hooks and of the step with them, and their ratio."""
    torch.manual_seed(0)
    recipe = yaml.safe_load((CONFIGS / case / "quickstart.yaml").read_text(encoding="utf-8"))
    module, profiler = CASES[case](**recipe["model"]["init_args"]), SimpleProfiler()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            callbacks=[BadNumbers("skip")],
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            logger=False,
            max_epochs=1,
            max_steps=WARM_UP + steps,
            profiler=profiler,
        )
        trainer.fit(module, DataLoader([batch_of(case, recipe)] * (WARM_UP + steps), batch_size=None))  # type: ignore[arg-type]

    def of(name: str) -> float:
        return 1e3 * float(statistics.median(profiler.recorded_durations[name][WARM_UP:]))

    # The first lies before the profiler's step, the others within it.
    before, *within = (of(f"[Callback]BadNumbers.on_{hook}") for hook in HOOKS)
    step = of("run_training_batch") + before
    hooks = before + sum(within)
    return {"what": f"{case}: {steps} steps", "hooks_ms": hooks, "step_ms": step, "share": hooks / step}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.bad_numbers", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--steps", type=int, default=30, help=f"steps of each, after {WARM_UP} that are not counted")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for row in (measure(case, options.steps) for case in CASES):
        told = [f"{name} {value:.3g}" for name, value in row.items() if not isinstance(value, str)]
        print(f"{row['what']}, {options.threads} threads:", "  ".join(told))


if __name__ == "__main__":
    main()
