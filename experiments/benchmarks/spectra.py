"""Speed of scoring and training detectors of generated pictures: a bank against the reference's way.

    python -m experiments.benchmarks.spectra [--json FILE]

Seven: one window of 512 px scored for seven generators. Baseline: seven detectors one after the other, each with its
colour conversion, denoiser, whole spectrum, masks and cosines, as the reference runs them. Ours: the bank of the same
weights, whose shared residual is computed once; logits are compared. One: the same for one generator, where all that
is left is folded batch norm, memory layout and the half plane. Training: a step of a head with its denoiser frozen,
from windows and from cached spectra; and, for comparison, one that also trains the denoiser, as the reference does.

Weights are made up: they decide nothing of the time. Both sides take turns in one process; the row gives medians of
processor time, and the ratio is the median of the turns' ratios.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.functional.color import rgb_to_ycbcr_studio
from lightning_modules.masksim.bank import DetectorBank
from lightning_modules.masksim.module import MaskSimModule
from lightning_modules.masksim.network import MaskSimNetwork

GENERATORS = ("sd1", "sd2", "sdxl", "dalle2", "dalle3", "midjourney", "firefly")
NEEDED = {"seven": 6.0, "one": 1.3, "training": 50.0}

Row = dict[str, float | int | str]
Side = Callable[[], object]


def make_detectors(names: Sequence[str], window: int, **sizes: Any) -> list[tuple[str, MaskSimNetwork]]:
    """Return detectors that share a denoiser, with statistics and masks as trained ones might have them."""
    torch.manual_seed(0)
    detectors = [(name, MaskSimNetwork(window, "dncnn", **sizes).eval()) for name in names]
    for _, network in detectors:
        with torch.no_grad():
            for parameters in (network.mask_pre_activ_list, network.ref_pattern_list):
                for parameter in parameters:
                    parameter.normal_()
        for layer in network.preproc.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, 0.0, 0.5)
        network.preproc.load_state_dict(detectors[0][1].preproc.state_dict())
        network.requires_grad_(False)
    return detectors


def score_one_by_one(detectors: Sequence[tuple[str, MaskSimNetwork]], image: Tensor) -> Tensor:
    """Return logits (B, G): each detector from pixels to score, one after the other."""
    return torch.stack([network(rgb_to_ycbcr_studio(image, truncate=True)) for _, network in detectors], dim=1)


def measure_scoring(names: Sequence[str], window: int, repeats: int, needed: float, **sizes: Any) -> Row:
    """Return seconds of both sides for one window, their ratio, and the largest difference of their logits."""
    detectors = make_detectors(names, window, **sizes)
    bank = DetectorBank.from_detectors(detectors).eval()
    image = torch.rand(1, 3, window, window, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        difference = float((bank(image) - score_one_by_one(detectors, image)).abs().max())
        sides: dict[str, Side] = {
            "ours": lambda: bank(image),
            "one_by_one": lambda: score_one_by_one(detectors, image),
        }
        times = in_turns(sides, repeats)
    what = f"one window of {window} px, {len(names)} generator(s)"
    return summed_up(what, times, "ours", "one_by_one", needed) | {"largest_logit_difference": difference}


def measure_training(window: int, batch: int, repeats: int, needed: float, **sizes: Any) -> Row:
    """Return seconds of a step of a head from cached spectra and from windows, and their ratio."""
    frozen, whole = _trained(window, True, **sizes), _trained(window, False, **sizes)
    image = torch.randint(0, 256, (batch, 3, window, window), generator=torch.Generator().manual_seed(2)).byte()
    labels: dict[str, Any] = {
        "label": torch.arange(batch).remainder(2).float(),
        "generator": ["real", GENERATORS[0]] * (batch // 2),
    }
    with torch.no_grad():
        spectrum = frozen.cache_spectrum(image).half()
    sides: dict[str, Side] = {
        "cached": _step(frozen, labels | {"spectrum": spectrum}),
        "through_denoiser": _step(frozen, labels | {"image": image}),
    }
    times = in_turns(sides, repeats)
    learning = in_turns({"learning_denoiser": _step(whole, labels | {"image": image})}, 1, warm_up=False)
    what = f"a step of one head, {batch} windows of {window} px"
    row = summed_up(what, times, "cached", "through_denoiser", needed)
    seconds = learning["learning_denoiser"][0]
    return row | {
        "learning_denoiser_s": round(seconds, 3),
        "learning_ratio": round(seconds / statistics.median(times["cached"]), 1),
    }


def in_turns(sides: dict[str, Side], repeats: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Return the processor seconds of each turn of each side."""
    for side in sides.values() if warm_up else ():
        side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.process_time()
            side()
            times[name].append(time.process_time() - start)
    return times


def summed_up(what: str, times: dict[str, list[float]], ours: str, other: str, needed: float) -> Row:
    """Return a row of medians."""
    ratios = [theirs / own for own, theirs in zip(times[ours], times[other], strict=True)]
    return {
        "what": f"{what}, {len(ratios)} turns, {torch.get_num_threads()} threads",
        f"{ours}_s": round(statistics.median(times[ours]), 4),
        f"{other}_s": round(statistics.median(times[other]), 4),
        "ratio": round(statistics.median(ratios), 2),
        "needed_ratio": needed,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rows and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.spectra", description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--repeats", type=int, default=5, help="turns of both sides")
    parser.add_argument("--window", type=int, default=512, help="side of the windows")
    parser.add_argument("--batch", type=int, default=4, help="windows of a training step, an even number")
    parser.add_argument("--only", choices=list(NEEDED), help="measure one row")
    options = parser.parse_args(arguments)
    names = {"seven": GENERATORS, "one": GENERATORS[:1]}
    rows = {}
    for name in [options.only] if options.only else NEEDED:
        if name == "training":
            rows[name] = measure_training(options.window, options.batch, options.repeats, NEEDED[name])
        else:
            rows[name] = measure_scoring(names[name], options.window, options.repeats, NEEDED[name])
        print("  ".join(f"{key} {value}" if key != "what" else f"{value}:" for key, value in rows[name].items()))
    if options.json is not None:
        report = {"python": platform.python_version(), "torch": torch.__version__, **rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _trained(window: int, frozen: bool, **sizes: Any) -> MaskSimModule:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"generators": [GENERATORS[0]], "img_size": window, "tied": True, "loss": "sealmark"}
    return MaskSimModule(**settings, **sizes, relative_floor=0.05, freeze_denoiser=frozen).train()


def _step(module: MaskSimModule, batch: dict[str, Any]) -> Side:
    """Return a function that does what the trainer does with a batch."""
    configured: Any = module.configure_optimizers()
    optimizer = configured["optimizer"]

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(module.training_step(batch, 0))
        optimizer.step()

    module.log = lambda *_, **__: None  # type: ignore[method-assign] # there is no trainer
    return step


if __name__ == "__main__":
    main()
