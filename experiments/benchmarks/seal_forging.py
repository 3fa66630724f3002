"""Speed of the forger's training: a whole step against the passes through the frozen model that it cannot do without.

    python -m experiments.benchmarks.seal_forging [--json FILE]

For each prior a step is what the trainer does with a batch: forger, VAE, U-Net, content losses, backward, clipping,
optimisers. Beside it, on tensors of the same sizes and in turns: the U-Net's passes alone (forward under each prompt;
for `full` and `vsd` also backward to what is trained), and these with the VAE's encoding and its backward pass, without
which no gradient reaches a picture. Weights are a miniature's, from a seed: they decide nothing of the time.

The row gives medians of processor time; ratios are medians of the turns' ratios. On a GPU (--device cuda) times are of
the wall, with a wait for the device.
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
from torch import Tensor

from lightning_modules.base import make_optimizer
from lightning_modules.seal2real.backbone import DiffusionBackbone
from lightning_modules.seal2real.fake_branch import FakeBranch, without_adapter
from lightning_modules.seal2real.forger import ForgerModule
from lightning_modules.seal2real.forger_losses import PriorKind, PriorSettings
from lightning_modules.seal2real.forger_prior import FrozenPrior
from lightning_modules.seal2real.tiny_parts import TinySettings

KINDS: tuple[PriorKind, ...] = ("full", "sds", "dds", "vsd")
NEEDED = 1.25
# Latents of half the picture's side, as the quickstart trains its model.
QUICKSTART = TinySettings(vae_channels=(16, 32), latent_channels=8, latent_side=16)

Row = dict[str, float | int | str]
Side = Callable[[], object]


def measure(kind: PriorKind, source: str, side: int, batch: int, repeats: int, device: str) -> Row:
    """Return seconds of a step and of the passes in it, and their ratios.

    Args:
        kind: Which prior.
        source: A diffusers folder, or ``quickstart`` or ``tiny`` for a miniature.
        side: Of the pictures.
        batch: Pictures a step.
        repeats: Turns.
        device: Where.
    """
    module, image, ink = _prepared(kind, source, side, batch, device)
    sides: dict[str, Side] = {
        "step": _step(module, image, ink),
        "unet": _unet_passes(module, image),
        "frozen": _frozen_passes(module, image),
    }
    times = in_turns(sides, repeats, device)
    row: Row = {"what": f"{kind}, {source}, {batch} x {side} px, {repeats} turns, {torch.get_num_threads()} threads"}
    row |= {f"{name}_s": round(statistics.median(spent), 4) for name, spent in times.items()}
    for name in ("unet", "frozen"):
        ratios = [step / other for step, other in zip(times["step"], times[name], strict=True)]
        row[f"step_by_{name}"] = round(statistics.median(ratios), 3)
    return row | {"needed": NEEDED}


def in_turns(sides: dict[str, Side], repeats: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of each turn of each side, after one that does not count."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            start = clock()
            side()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:
                times[name].append(clock() - start)
    return times


def _prepared(kind: PriorKind, source: str, side: int, batch: int, device: str) -> tuple[ForgerModule, Tensor, Tensor]:
    torch.manual_seed(0)
    module = ForgerModule(prior=PriorSettings(kind=kind, t_range=(20, 700))).to(device)
    backbone = DiffusionBackbone.tiny(QUICKSTART) if source == "quickstart" else DiffusionBackbone.load(source)
    real, fake = backbone.embed(["a real seal", "a fake seal"])
    module.frozen = FrozenPrior(backbone, real, fake).to(device)
    if kind == "vsd":
        module.fake = FakeBranch(backbone, fake, module.prior.lora_rank).to(device)
    image = torch.rand(batch, 3, side, side, device=device)
    ink = torch.zeros(batch, 1, side, side, dtype=torch.bool, device=device)
    ink[..., side // 4 : -side // 4, side // 4 : -side // 4] = True
    return module, image, ink


def _step(module: ForgerModule, image: Tensor, ink: Tensor) -> Side:
    """Return a function that does what the trainer does with a batch."""
    optimizers = [
        make_optimizer(part, "adamw", 1e-3, 0.0) for part in (module.network, module.fake) if part is not None
    ]

    index = torch.arange(len(image))

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss, fake_loss, _ = module.losses_of(image, ink, index)
        torch.autograd.backward(loss if fake_loss is None else loss + fake_loss)
        torch.nn.utils.clip_grad_norm_(module.network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()

    return step


def _unet_passes(module: ForgerModule, image: Tensor) -> Side:
    """Return a function that does what a step asks of the U-Net."""
    frozen = module.frozen
    assert frozen is not None
    shape = (len(image), *frozen.latent_shape(image))
    latents, noise = torch.randn(2, *shape, device=image.device)
    timesteps = torch.full((len(image),), 300, device=image.device)

    def passes() -> None:
        if module.fake is None:
            frozen.gradient(latents, noise, timesteps, module.prior)
            return
        noisy = frozen.backbone.add_noise(latents, noise, timesteps)
        with torch.no_grad(), without_adapter(frozen.backbone):
            frozen.backbone.predict_noise(noisy, timesteps, frozen.real[None])
        torch.autograd.backward(module.fake(frozen.backbone, noisy, timesteps).sum())

    return passes


def _frozen_passes(module: ForgerModule, image: Tensor) -> Side:
    """Return a function that does what a step asks of U-Net and VAE."""
    frozen = module.frozen
    assert frozen is not None
    unet, picture = _unet_passes(module, image), image.clone().requires_grad_()

    def passes() -> None:
        unet()
        torch.autograd.backward(frozen.backbone.encode(picture).sum())

    return passes


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rows and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.seal_forging", description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--repeats", type=int, default=5, help="turns of all sides")
    parser.add_argument("--backbone", default="quickstart", help="a diffusers folder, quickstart, or tiny")
    parser.add_argument("--side", type=int, default=64, help="of the pictures")
    parser.add_argument("--batch", type=int, default=8, help="pictures a step")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", choices=KINDS, help="measure one prior")
    options = parser.parse_args(arguments)
    rows: dict[str, Any] = {}
    for kind in [options.only] if options.only else KINDS:
        rows[kind] = measure(kind, options.backbone, options.side, options.batch, options.repeats, options.device)
        print("  ".join(f"{key} {value}" if key != "what" else f"{value}:" for key, value in rows[kind].items()))
    if options.json is not None:
        report = {"python": platform.python_version(), "torch": torch.__version__, **rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
