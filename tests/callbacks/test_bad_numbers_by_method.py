"""Every method's step that meets NaN changes nothing, whoever of its players met it, and the next one moves."""

import copy

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from callbacks.bad_numbers import BadNumbers
from lightning_modules.masksim.denoising import DenoiserModule
from lightning_modules.masksim.module import MaskSimModule
from lightning_modules.seal2real.backbone import DiffusionBackbone
from lightning_modules.seal2real.forger import ForgerModule
from lightning_modules.seal2real.forger_losses import PriorSettings
from lightning_modules.seal2real.prompts import PromptPriorModule
from lightning_modules.seal2real.reader import SealReaderModule
from lightning_modules.seal2real.tiny_parts import TinySettings
from lightning_modules.seal2real.verifier import SealVerifierModule
from lightning_modules.sscd.module import SSCDModule
from lightning_modules.syncseal.augmentation.settings import ValueSettings
from lightning_modules.syncseal.module import SyncSealModule
from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule

SIDE, COUNT = 32, 4
TINY = TinySettings(vae_channels=(8, 8), latent_channels=4, unet_channels=(16, 16), prompt_dim=16, head_dim=8)


def forger(kind):
    return ForgerModule(channels=(8, 16), noise_scales=(1,), prior=PriorSettings(kind=kind, t_range=(20, 700)))


# The module, what is NaN in the bad batch, and where the bad gradient is: in the second player, if there is one.
METHODS = {
    "watermark_segmentation": (
        lambda: WatermarkSegmentationModule(encoder="resnet18", encoder_depth=3, decoder_channels=[16, 8, 8]),
        ("image", "network"),
    ),
    "sscd": (
        lambda: SSCDModule(backbone="resnet18", dims=16, scale_lr=False, optimizer="lars", lr=0.05),
        ("views", "network"),
    ),
    "masksim": (
        lambda: MaskSimModule(["rows"], SIDE, denoiser_depth=3, denoiser_width=4, freeze_denoiser=False),
        ("image", "heads"),
    ),
    "denoiser": (lambda: DenoiserModule(depth=3, width=4), ("image", "denoiser")),
    "syncseal": (
        lambda: SyncSealModule(
            size=SIDE,
            embedder="relu_batch",
            embedder_channels=(8, 16),
            embedder_blocks=1,
            detector_depths=(1, 1),
            detector_dims=(8, 16),
            disc_start=0,
            values=ValueSettings(weights={"brightness": 1}, stages=1),
        ),
        ("image", "discriminator"),
    ),
    "forger": (lambda: forger("dds"), ("image", "network")),
    "forger with a fake branch": (lambda: forger("vsd"), ("image", "fake")),
    "prompts": (lambda: PromptPriorModule("tiny"), ("real", "fake_prompt")),
    "reader": (lambda: SealReaderModule(alphabet="ab", width=4), ("image", "network")),
    "verifier": (lambda: SealVerifierModule(width=4), ("image", "network")),
}
DIFFUSION = ("forger", "forger with a fake branch", "prompts")


@pytest.fixture(scope="module")
def tiny_backbone():
    return DiffusionBackbone.tiny(TINY)


def batch_of(method, number):
    rng = torch.Generator().manual_seed(number)
    image = torch.rand(COUNT, 3, SIDE, SIDE, generator=rng)
    box = torch.zeros(COUNT, 1, SIDE, SIDE)
    box[..., 8:20, 8:20] = 1
    batch = {"image": image, "index": torch.arange(COUNT) + COUNT * number}
    more = {
        "watermark_segmentation": {"mask": box},
        "sscd": {"views": torch.stack([image, image.flip(-1)], dim=1)},
        "masksim": {"label": torch.tensor([0.0, 1, 0, 1]), "generator": ["real", "rows"] * 2},
        "prompts": {"real": image, "synthetic": image.flip(-1)},
        "reader": {"image": image[..., :24, :], "text": ["ab", "a", "b", "ba"], "width": torch.full((COUNT,), SIDE)},
        "verifier": {"reference": box, "authentic": torch.arange(COUNT) % 2 == 0},
    }
    seals = {"real": image.flip(-1), "ink": box.to(torch.uint8)}
    return batch | more.get(method, seals)


class Watches(Callback):
    """Keeps all that a step may change, before and after each."""

    def __init__(self, part, poisoned):
        self.part, self.poisoned = part, poisoned
        self.states = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.states.append(state_of(trainer, module))
        if self.poisoned and batch_idx == 1:
            parameter = next(each for each in getattr(module, self.part).parameters() if each.requires_grad)
            self.handle = parameter.register_hook(lambda gradient: gradient * torch.nan)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.states.append(state_of(trainer, module))
        if self.poisoned and batch_idx == 1:
            self.handle.remove()


def state_of(trainer, module):
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return copy.deepcopy(({name: value.detach() for name, value in tensors.items()}, optimizer_tensors(trainer)))


def optimizer_tensors(trainer):
    found = {}
    for number, optimizer in enumerate(trainer.optimizers):
        for place, state in optimizer.state_dict()["state"].items():
            found |= {
                (number, place, name): torch.as_tensor(value) for name, value in state.items() if value is not None
            }
    return found


def changed(before, after):
    assert all(old.keys() <= new.keys() for old, new in zip(before, after, strict=True))
    pairs = ((name, new[name], old.get(name)) for old, new in zip(before, after, strict=True) for name in new)
    return {name for name, new, old in pairs if old is None or not torch.equal(new, old)}


# Two players, and a loss that torch refuses to take of NaN; all others in the slow tests.
FAST = {("syncseal", "gradient"), ("masksim", "sample")}
CASES = [(method, kind) for method in METHODS for kind in ("sample", "gradient")]


@pytest.mark.parametrize(
    ("method", "kind"), [pytest.param(*case, marks=[] if case in FAST else [pytest.mark.slow]) for case in CASES]
)
def test_a_bad_step_changes_nothing(method, kind, tmp_path, monkeypatch, request):
    if method in DIFFUSION:
        tiny = request.getfixturevalue("tiny_backbone")
        monkeypatch.setattr(DiffusionBackbone, "load", classmethod(lambda cls, *_: copy.deepcopy(tiny)))
    torch.manual_seed(0)
    build, (poisoned_key, part) = METHODS[method]
    batches = [batch_of(method, number) for number in range(3)]
    if kind == "sample":
        batches[1][poisoned_key] = batches[1][poisoned_key].clone()
        batches[1][poisoned_key].view(-1)[SIDE + 5] = torch.nan
    watches, bad_numbers = Watches(part, kind == "gradient"), BadNumbers("skip", limit=1)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[bad_numbers, watches],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = build()
    trainer.fit(module, DataLoader(batches, batch_size=None))
    before_first, after_first, before_bad, after_bad, before_last, after_last = watches.states
    assert bad_numbers.skipped == 1
    assert trainer.global_step == 3
    moves = changed(before_first, after_first)
    assert any(str(name).startswith(part) for name in moves)
    assert changed(before_bad, after_bad) == set()
    assert changed(before_last, after_last) >= moves & set(after_last[0])
    assert all(np.isfinite(value.float().numpy()).all() for state in after_last for value in state.values())
