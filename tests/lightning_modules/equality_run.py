"""Every trainable module on tiny data, and a program that trains it on one process, on two, and by accumulation.

`python equality_run.py FOLDER [CASE ...]` leaves `one.pt`, `accumulated.pt`, `rank_0.pt` and `rank_1.pt` in the folder:
by name of a case the gradients of its first step and the table of a test, or why it does not accumulate. All modes take
the same samples in the same order, dealt by the real datamodule. Batch norms keep to their running statistics: on CPUs
they see the samples of one process. No draw is fixed for it: losses draw by sample.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.nn.modules.batchnorm import _BatchNorm

from datamodules.base import ProvenanceDataModule

BATCH = 6  # samples of a step in all
STEPS = 2  # a parameter that a loss leaves out is noticed by DDP at the second
EVALUATED = 5  # odd: one is dealt twice to two processes
SIDE = 32


def rng_of(index):
    return np.random.default_rng([7, index])


def noise(index, *shape):
    return torch.from_numpy(rng_of(index).random(shape))


def marked(index):
    """A bright square in noise, larger from sample to sample, and more pixels that do not count."""
    mask, ignore = torch.zeros(1, SIDE, SIDE), torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    mask[:, 4 : 10 + 2 * index, 6:20] = index != 1  # one clean picture
    ignore[:, : 1 + index] = True
    return {
        "image": noise(index, 3, SIDE, SIDE) * 0.5 + 0.4 * mask,
        "mask": mask,
        "ignore": ignore,
        "alpha": 0.1 * (index + 1) * mask,
        "color": mask * noise(index + 100, 3, 1, 1),
    }


def views(index):
    return {"views": noise(index, 2, 3, SIDE, SIDE)}


def spectra(index):
    """In the order that the seed gives, two processes get unequal numbers of each class."""
    kind = ("real", "a", "b", "b", "a", "a", "real", "real", "real", "b", "real", "real")[index]
    return {"image": noise(index, 3, 24, 24), "label": float(kind != "real"), "generator": kind}


def scene(index):
    return {"image": noise(index, 3, SIDE, SIDE).float()}


def seal(index):
    """A red square of its own size on paper, and a grainy picture."""
    ink = torch.zeros(1, SIDE, SIDE)
    ink[:, 4 : 12 + 2 * index, 4:18] = 1
    drawn = torch.where(ink > 0, torch.tensor([0.8, 0.2, 0.2])[:, None, None], torch.tensor(0.97))
    return {"image": drawn.float(), "real": noise(index, 3, SIDE, SIDE).float(), "ink": ink}


def pair(index):
    reference = (noise(index, 1, 48, 48) > 0.7).double()
    return {"image": noise(index + 50, 3, 48, 48), "reference": reference, "authentic": index % 2, "kind": "square"}


def line(index):
    text = "abcab"[: 1 + index % 5]
    return {"image": noise(index, 3, 24, 64), "width": 64 - 8 * (index % 3), "text": text}


class Samples(ProvenanceDataModule):
    """The samples of a function, in the order and dealing of the real base."""

    def __init__(self, draw, batch_size):
        super().__init__(batch_size, eval_batch_size=1, num_workers=0, seed=3)
        self.draw = draw

    def build_dataset(self, split):
        return _Drawn(self.draw, EVALUATED if split != "train" else BATCH * STEPS)


class _Drawn(torch.utils.data.Dataset):
    def __init__(self, draw, length):
        self.draw, self.length = draw, length

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        return self.draw(key.index) | {"index": key.index, "path": f"{key.index}.png"}


def segmentation(**changes):
    from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule

    small = {"encoder": "resnet18", "encoder_depth": 3, "decoder_channels": [8, 8, 8], "decoder_norm": "identity"}
    return WatermarkSegmentationModule(**small | changes)


def sscd(**changes):
    from lightning_modules.sscd.module import SSCDModule

    given = {"backbone": "test_convnext", "dims": 16, "entropy_weight": 5.0, "scale_lr": False} | changes
    return SSCDModule(**given, optimizer="adam")


def masksim(**changes):
    from lightning_modules.masksim.module import MaskSimModule

    return MaskSimModule(["a", "b"], 24, **changes)


def denoiser():
    from lightning_modules.masksim.denoising import DenoiserModule

    return DenoiserModule(depth=4, width=4, color="rgb", schedule="constant")


def syncseal(**changes):
    from lightning_modules.syncseal.module import SyncSealModule

    small = {"size": SIDE, "embedder_channels": (8, 16), "embedder_blocks": 1, "detector_depths": (1, 1)}
    given = {"detector_dims": (8, 16), "disc_start": 0, "transforms": ("identity", "rotate_20")} | changes
    return SyncSealModule(**small, **given)


def prompts(**changes):
    from lightning_modules.seal2real.prompts import PromptPriorModule

    return PromptPriorModule("tiny", eval_draws=2, **changes)


def joint():
    from lightning_modules.seal2real.joint import JointFinetuneModule

    return JointFinetuneModule("tiny", repeats=2, eval_draws=2)


def forger(kind):
    from lightning_modules.seal2real.forger import ForgerModule
    from lightning_modules.seal2real.forger_losses import ContentSettings, PriorSettings

    content = ContentSettings(pixel=1, outside=1, low_pass=1, edge=1, variation=1)
    prior = PriorSettings(kind=kind, t_range=(20, 700))
    small = {"channels": (8, 16), "noise_scales": (1, 4), "eval_draws": 2}
    return ForgerModule("tiny", prior=prior, content=content, clip_norm=None, **small)


def verifier():
    from lightning_modules.seal2real.verifier import SealVerifierModule

    return SealVerifierModule(width=4, schedule="constant")


def reader():
    from lightning_modules.seal2real.reader import SealReaderModule

    return SealReaderModule(alphabet="abc", width=4, schedule="constant")


EXACT, SINGLE = "64-true", "32-true"
MASKS = ("dice", "image_dice", "bce", "bce_dice", "bce_image_dice", "bce_lovasz", "bce_soft_iou", "focal", "lovasz")
KINDS = ("full", "sds", "dds", "vsd")
# By name: the module, its samples, and the precision. The frozen models compute in float32.
CASES = {
    **{f"segmentation/{loss}": (lambda loss=loss: segmentation(loss=loss), marked, EXACT) for loss in MASKS},
    "segmentation/heads": (lambda: segmentation(alpha_head=True, color_head=True), marked, EXACT),
    "sscd": (sscd, views, EXACT),
    "sscd/micro_batch": (lambda: sscd(micro_batch=3), views, EXACT),
    "masksim/reference": (lambda: masksim(preprocess="linear3x3"), spectra, EXACT),
    "masksim/sealmark": (
        lambda: masksim(preprocess="identity", loss="sealmark", tied=True, other_generators="negative", num_masks=2),
        spectra,
        EXACT,
    ),
    "masksim/dncnn": (lambda: masksim(denoiser_depth=3, denoiser_width=4, shared_trunk=False), spectra, EXACT),
    "denoiser": (denoiser, spectra, EXACT),
    "syncseal": (lambda: syncseal(presence_weight=1.0, unmarked_share=1 / 3, pixel_weight=1.0), scene, SINGLE),
    "syncseal/relu_batch": (lambda: syncseal(embedder="relu_batch", corner_loss="laplace"), scene, SINGLE),
    "syncseal/finetuning": (lambda: syncseal(finetune_detector_start=0), scene, SINGLE),
    "prompts": (lambda: prompts(contrast_weight=1.0), seal, SINGLE),
    "prompts/batch": (lambda: prompts(timesteps="batch", cache_latents=True), seal, SINGLE),
    "prompts/token": (lambda: prompts(space="token", posterior="mode"), seal, SINGLE),
    "joint": (joint, seal, SINGLE),
    **{f"forger/{kind}": (lambda kind=kind: forger(kind), seal, SINGLE) for kind in KINDS},
    "verifier": (verifier, pair, EXACT),
    "reader": (reader, line, EXACT),
}
# Of the fast suite: without diffusers, whose import takes longest.
FAST = ("segmentation/image_dice", "sscd", "masksim/sealmark", "denoiser", "reader")


def evaluation(name):
    """Return the callbacks whose table two processes must agree on, for cases that no other test covers."""
    from callbacks.prior_separation import PriorSeparationEvaluation
    from callbacks.seal_tasks import ReadingEvaluation, VerificationEvaluation
    from callbacks.synchronization import SynchronizationEvaluation

    kinds = {
        "syncseal": SynchronizationEvaluation,
        "prompts": PriorSeparationEvaluation,
        "verifier": VerificationEvaluation,
        "reader": ReadingEvaluation,
    }
    return [kinds[name](resamples=20)] if name in kinds else []


class Gradients(Callback):
    """Keeps the gradients of the first step, after processes and batches have been averaged."""

    def __init__(self):
        self.kept = None

    def on_train_start(self, trainer, pl_module):
        for part in pl_module.modules():
            if isinstance(part, _BatchNorm):
                part.eval()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.kept is None:
            named = pl_module.named_parameters()
            self.kept = {name: p.grad.double().clone() for name, p in named if p.grad is not None}


def run_case(name, folder, batch_size, **options):
    """Train two steps; return the gradients of the first, and the table of a test."""
    make, draw, precision = CASES[name]
    torch.manual_seed(0)
    module, gradients = make(), Gradients()
    trainer = Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=1,
        limit_val_batches=0,
        callbacks=[gradients, *evaluation(name)],
        logger=CSVLogger(folder, name=name.replace("/", "_")),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"devices": 1, **options},
    )
    state = {key: value.clone() for key, value in module.state_dict().items()}
    data = Samples(draw, batch_size)
    trainer.fit(module, datamodule=data)
    table = None
    if evaluation(name):
        module.load_state_dict(state)  # weights after two steps differ by rounding
        trainer.test(module, datamodule=data, verbose=False)
        written = Path(trainer.log_dir) / "results.json"  # asks all ranks
        if trainer.is_global_zero:
            table = json.loads(written.read_text())["results"]
    return {"gradients": gradients.kept, "table": table, "steps": trainer.global_step}


def accumulate(name, folder):
    """Train by accumulated halves; where that is refused, return the line that says so."""
    try:
        return run_case(name, folder, BATCH // 2, accumulate_grad_batches=2)
    except ValueError as error:
        return {"refused": str(error)}


def run_alone(folder, names):
    """One process: whole batches, then halves that are accumulated."""
    one = {name: run_case(name, f"{folder}/one", BATCH) for name in names}
    torch.save(one, f"{folder}/one.pt")
    torch.save({name: accumulate(name, f"{folder}/halves") for name in names}, f"{folder}/accumulated.pt")


def run_rank(folder, names):
    """One of two processes, with half of each batch."""
    found = {name: run_case(name, f"{folder}/two", BATCH // 2, devices=2, strategy="ddp") for name in names}
    torch.save(found, f"{folder}/rank_{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root), str(root / "tests" / "callbacks")]
    from two_ranks import in_two_processes

    out, names = sys.argv[1], sys.argv[2:] or list(CASES)
    for name in names:
        CASES[name][0]()  # imports before the fork
    parent, alone = os.getpid(), os.fork()
    if not alone:
        run_alone(out, names)
        os._exit(0)
    try:
        in_two_processes(lambda folder: run_rank(folder, names), out)
    finally:
        if os.getpid() == parent and os.waitpid(alone, 0)[1]:
            sys.exit("the single process failed")
