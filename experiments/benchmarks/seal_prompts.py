"""Time of a step of Seal2Real's stage 1 with cached latents against the same step without.

    python -m experiments.benchmarks.seal_prompts [--json FILE] [--steps N]

Both sides take the same pictures of 128 pixels in turns, through the tiny model, whose VAE has the levels of Stable
Diffusion's. Processor time, so that other work on the machine matters little. The first pass over the pictures, which
fills the cache, is stated apart. Also stated: the largest difference of the losses of both sides.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_modules.seal2real.prompts import PromptPriorModule

SIDE, BATCH, BATCHES, NEEDED = 128, 4, 4, 1.5

Row = dict[str, float | str]


class _Silent(PromptPriorModule):
    """Stage 1 without a trainer to log to."""

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log nothing."""


def make_batches() -> list[dict[str, Tensor]]:
    """Return batches of drawn noise; what is in a picture changes no time."""
    draws = torch.Generator().manual_seed(0)
    pictures = torch.rand(2, BATCHES, BATCH, 3, SIDE, SIDE, generator=draws)
    places = torch.arange(BATCHES * BATCH).reshape(BATCHES, BATCH)
    return [{"real": pictures[0, i], "image": pictures[1, i], "index": place} for i, place in enumerate(places)]


def take_step(
    module: PromptPriorModule, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]
) -> tuple[float, float]:
    """Take a training step; return its processor seconds and its loss."""
    torch.manual_seed(0)
    start = time.process_time()
    loss = module.training_step(batch, 0)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return time.process_time() - start, float(loss.detach())


def measure(steps: int) -> Row:
    """Return the median seconds of a step of both sides."""
    batches = make_batches()
    sides = {cached: _Silent("tiny", cache_latents=cached) for cached in (True, False)}
    optimizers = {cached: torch.optim.AdamW(_learned(module), lr=1e-3) for cached, module in sides.items()}
    filling = [take_step(sides[True], optimizers[True], batch)[0] for batch in batches]
    for batch in batches:
        take_step(sides[False], optimizers[False], batch)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    largest = 0.0
    for step in range(steps):
        batch = batches[step % BATCHES]
        losses = []
        for cached, module in sides.items():
            spent, loss = take_step(module, optimizers[cached], batch)
            seconds[cached].append(spent)
            losses.append(loss)
        largest = max(largest, abs(losses[0] - losses[1]))
    cached_s, plain_s = (statistics.median(seconds[cached]) for cached in (True, False))
    return {
        "what": f"a step of stage 1, {BATCH} + {BATCH} pictures of {SIDE} px, {steps} turns, processor seconds",
        "cached_s": round(cached_s, 4),
        "plain_s": round(plain_s, 4),
        "ratio": round(plain_s / cached_s, 2),
        "needed": NEEDED,
        "filling_s": round(statistics.median(filling), 4),
        "largest_loss_difference": largest,
    }


def _learned(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the row and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.seal_prompts", description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the row")
    parser.add_argument("--steps", type=int, default=20, help="turns of each side")
    options = parser.parse_args(arguments)
    row = measure(options.steps)
    print("  ".join(f"{name} {value}" if name != "what" else f"{value}:" for name, value in row.items()))
    if options.json is not None:
        report = {"python": platform.python_version(), "torch": torch.__version__, **row}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
