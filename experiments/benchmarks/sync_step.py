"""A training step of SyncSeal against its networks alone: what marking, attacks, losses and clipping add.

    python -m experiments.benchmarks.sync_step [--cases small published] [--threads N] [--turns N] [--json FILE]

Both sides take turns on the same batch and the same module. Networks alone: embedder, detector and the discriminator's
three passes, forward and backward. The step is the module's own, with the published attacks and losses, from the marks
to clipped gradients, without a trainer around it. Both end with the optimisers' steps, which any training has; what
these take is given beside the rows. Seconds of the processor are the steadier figure on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from datamodules.images.procedural import draw_scene
from lightning_modules.syncseal.losses import adversarial_loss, hinge_loss
from lightning_modules.syncseal.module import SyncSealModule
from lightning_modules.syncseal.players import frozen, keep_sound_gradients

ALLOWED_RATIO = 1.15
BATCH = 8
CASES: dict[str, dict[str, Any]] = {
    "small": {
        "size": 64,
        "embedder_channels": (8, 16, 32, 64),
        "embedder_blocks": 2,
        "detector_depths": (1, 2),
        "detector_dims": (48, 96),
    },
    "published": {"size": 256},
}
Row = dict[str, float | int | str]
Step = Callable[[], None]


def module_step(module: SyncSealModule, images: Tensor) -> Step:
    """Return the module's step up to clipped gradients."""
    index = torch.arange(len(images))

    def step() -> None:
        losses, hinge = module.losses_of(images, index)
        total = losses.total if hinge is None else losses.total + hinge
        total.backward()  # type: ignore[no-untyped-call]
        keep_sound_gradients(module.network, module.discriminator, True, True, 1000.0)

    return step


def networks_alone(module: SyncSealModule, images: Tensor) -> Step:
    """Return passes of the same networks, forward and backward, with next to nothing between them."""
    network, rival = module.network, module.discriminator
    assert rival is not None

    def step() -> None:
        marked = images + network.scaling_w * network.pattern(images)
        with frozen(rival):
            loss = network.detector(marked).mean() + adversarial_loss(rival(marked))
        loss = loss + hinge_loss(rival(images), rival(marked.detach()))
        loss.backward()

    return step


def measure(case: str, turns: int, batch: int = BATCH) -> Row:
    """Return medians of wall and processor milliseconds a step, the step's over the networks'."""
    torch.manual_seed(0)
    module = SyncSealModule(**CASES[case]).train()
    assert module.discriminator is not None
    size = CASES[case]["size"]
    scenes = np.stack([draw_scene(np.random.default_rng(number), (size, size)) for number in range(batch)])
    images = torch.from_numpy(np.ascontiguousarray(scenes.transpose(0, 3, 1, 2))).float() / 255
    players = [torch.optim.AdamW(part.parameters(), lr=1e-4) for part in (module.discriminator, module.network)]

    def update() -> None:
        for player in players:
            player.step()

    sides = {"step": module_step(module, images), "networks": networks_alone(module, images), "optimisers": update}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(-1, turns):
        for name, side in sides.items():
            for player in players:
                if name != "optimisers":
                    player.zero_grad()
            start, busy = time.perf_counter(), time.process_time()
            side()
            if turn >= 0:
                spent[name].append((time.perf_counter() - start, time.process_time() - busy))
    wall, cpu = (
        {name: statistics.median(pair[kind] for pair in pairs) * 1e3 for name, pairs in spent.items()}
        for kind in range(2)
    )
    row: Row = {"what": f"{case}: batch of {batch} at {size} px, {turns} turns, {torch.get_num_threads()} threads"}
    for label, times in (("ms", wall), ("cpu_ms", cpu)):
        row |= {f"{name}_{label}": round(times[name], 1) for name in sides}
        ratio = (times["step"] + times["optimisers"]) / (times["networks"] + times["optimisers"])
        row["ratio" if label == "ms" else "cpu_ratio"] = round(ratio, 3)
    return row | {"allowed_ratio": ALLOWED_RATIO}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rows and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.sync_step", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="sizes of the networks")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--turns", type=int, default=3, help="steps of each side, after one that is not counted")
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(0)
    rows = [measure(case, options.turns) for case in options.cases]
    for row in rows:
        print("  ".join(f"{name} {value}" if name != "what" else f"{value}:" for name, value in row.items()))
    if options.json is not None:
        report = {"python": platform.python_version(), "torch": torch.__version__, "rows": rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
