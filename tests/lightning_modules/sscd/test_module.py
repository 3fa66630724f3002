import copy
import itertools
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_modules.functional.resizing import resize
from lightning_modules.sscd.embedding import embed
from lightning_modules.sscd.losses import copy_loss
from lightning_modules.sscd.module import SSCDModule, learning_rate_factor
from lightning_modules.weights import save_weights

SMALL = {"backbone": "resnet18", "dims": 16, "scale_lr": False, "optimizer": "sgd", "lr": 0.05, "entropy_weight": 3.0}
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
QUIET |= {"enable_checkpointing": False}


def batch_of(count=6, side=32, seed=0):
    """Smooth pictures, and each once more, brighter and noisy."""
    rng = torch.Generator().manual_seed(seed)
    first = nn.functional.interpolate(torch.rand(count, 3, 4, 4, generator=rng), size=(side, side), mode="bilinear")
    second = (0.8 * first + 0.2 + 0.05 * torch.randn(first.shape, generator=rng)).clamp(0, 1)
    return {"views": torch.stack([first, second], dim=1), "index": torch.arange(10, 10 + count)}


def loader(batch, times):
    return torch.utils.data.DataLoader([batch] * times, batch_size=None)


@pytest.mark.parametrize("mixup", [False, True])
def test_views_of_a_picture_come_together(mixup):
    torch.manual_seed(0)
    module = SSCDModule(**SMALL, mixup=mixup, warmup_share=0.2)
    trainer = Trainer(max_epochs=1, log_every_n_steps=1, **QUIET)
    trainer.fit(module, loader(batch_of(), 25))
    assert trainer.callback_metrics["train/positive_sim"] > trainer.callback_metrics["train/nearest_negative_sim"] + 0.3
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize("parts", [1, 3, 5, 12])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts):
    torch.manual_seed(0)
    network = SSCDModule(**SMALL).network.double().eval()  # statistics of a part are not those of the batch
    views = batch_of()["views"].double().transpose(0, 1).flatten(0, 1)
    sources = torch.arange(6).repeat(2)[:, None]
    gradients = []
    for micro_batch in (None, parts):
        network.zero_grad()
        rows = embed(network, views, micro_batch)
        copy_loss(rows, rows, sources, sources).total.backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    for whole, part in zip(*gradients, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-9, atol=1e-12)


def test_running_statistics_see_each_view_once():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 30 * 30, 5))
    plain = copy.deepcopy(network)
    views = torch.rand(6, 3, 32, 32)
    embed(network, views, 2).square().sum().backward()
    for part in views.split(2):
        plain(part)
    torch.testing.assert_close(network[1].running_mean, plain[1].running_mean, rtol=0, atol=0)
    torch.testing.assert_close(network[1].running_var, plain[1].running_var, rtol=0, atol=0)
    assert network[1].num_batches_tracked == plain[1].num_batches_tracked == 3
    assert network[1].momentum == 0.1


@pytest.mark.parametrize(("micro_batch", "kept"), [(None, 1), (2, 0)])
def test_parts_keep_no_activations(micro_batch, kept):
    class Wide(nn.Module):
        def forward(self, views):
            return views.repeat(1, 50).exp().sum(dim=1, keepdim=True)  # exp keeps its value for its gradient

    packed = []
    views = torch.rand(8, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: packed.append(saved.shape) or saved, lambda saved: saved
    ):
        rows = embed(Wide(), views, micro_batch)
    assert sum(shape[-1] == 150 for shape in packed) == kept
    rows.sum().backward()
    torch.testing.assert_close(views.grad, 50 * views.detach().exp())


def test_images_of_any_sizes_are_described_as_one_by_one():
    torch.manual_seed(0)
    module = SSCDModule(**SMALL, resize="short_32").eval()
    sizes = ((40, 50), (64, 32), (80, 100), (32, 32), (40, 50))
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    batch = {"image": images, "path": [str(size) for size in sizes], "index": torch.arange(5), "skipped": []}
    together = module.predict_step(batch, 0)["descriptors"]
    with torch.inference_mode():
        for image, descriptor in zip(images, together, strict=True):
            alone = module(resize(image, "short_32")[None] / 255)[0]
            torch.testing.assert_close(alone, descriptor, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(5))


def test_prediction_returns_a_record_and_a_descriptor_an_image():
    module = SSCDModule(**SMALL, resize="short_32").eval()
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((70, 90), (33, 64))]
    out = module.predict_step({"image": images, "path": ["a", "b"], "index": torch.tensor([4, 7]), "skipped": []}, 0)
    assert [(record["path"], record["index"]) for record in out["records"]] == [("a", 4), ("b", 7)]
    assert out["descriptors"].shape == (2, 16)
    empty = module.predict_step({"image": [], "path": [], "index": torch.empty(0, dtype=torch.int64), "skipped": []}, 0)
    assert empty["records"] == []
    assert empty["descriptors"].shape == (0, 16)


def test_fingerprint_changes_with_weights_and_resizing():
    torch.manual_seed(0)
    module = SSCDModule(**SMALL)
    before = module.prediction_fingerprint()
    assert copy.deepcopy(module).prediction_fingerprint() == before
    module.hparams["resize"] = "skew_320"
    assert module.prediction_fingerprint() != before


def test_own_weights_start_a_module(tmp_path):
    torch.manual_seed(0)
    module = SSCDModule(**SMALL)
    save_weights(module, tmp_path / "a.safetensors", {})
    again = SSCDModule(**SMALL, weights=str(tmp_path / "a.safetensors"))
    for (key, value), other in zip(module.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def test_learning_rate_rises_from_zero_and_falls_to_the_floor():
    rates = [learning_rate_factor(step, 100, 5, cosine=True, floor=0.1) for step in range(101)]
    assert rates[:6] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[5:]))
    assert rates[100] == pytest.approx(0.1)
    assert learning_rate_factor(50, 0, 0, cosine=False) == 1


def test_scaled_rate_needs_a_batch_size():
    module = SSCDModule(**SMALL | {"scale_lr": True})
    with pytest.raises(ValueError, match="scale_lr"):
        Trainer(max_epochs=1, **QUIET).fit(module, loader(batch_of(), 1))


@pytest.mark.parametrize(
    ("options", "match"),
    [({"warmup_share": 1.0}, "warmup_share"), ({"micro_batch": 0}, "micro_batch"), ({"resize": "big"}, "short_N")],
)
def test_impossible_settings_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        SSCDModule(**SMALL, **options)


PROGRAM = """
import sys, torch
from lightning.pytorch import Trainer
sys.path.insert(0, {folder!r})
from test_module import QUIET, SMALL, batch_of, loader
from lightning_modules.sscd.module import SSCDModule

class Frozen(SSCDModule):
    def on_train_batch_start(self, batch, batch_idx):
        super().on_train_batch_start(batch, batch_idx)
        self.network.eval()  # statistics are a rank's own without SyncBN, which is for GPUs

torch.manual_seed(0)
module = Frozen(**SMALL, micro_batch={micro_batch!r}, schedule="constant", warmup_share=0.0)
trainer = Trainer(max_epochs=1, devices={ranks}, strategy={strategy!r}, use_distributed_sampler=False, **QUIET)
batch = batch_of(count=4)
if {ranks} > 1:
    part = slice(2 * trainer.global_rank, 2 * trainer.global_rank + 2)
    batch = {{key: value[part] for key, value in batch.items()}}
trainer.fit(module, loader(batch, 2))
if trainer.is_global_zero:
    torch.save(module.state_dict(), {output!r})
"""


@pytest.mark.slow
def test_two_processes_step_as_one_does(tmp_path):
    states = []
    for ranks, strategy, micro_batch in ((1, "auto", None), (2, "ddp", 3)):
        output = tmp_path / f"{ranks}.pt"
        script = tmp_path / f"{ranks}.py"
        fields = {"ranks": ranks, "strategy": strategy, "micro_batch": micro_batch, "output": str(output)}
        script.write_text(textwrap.dedent(PROGRAM.format(folder=str(Path(__file__).parent), **fields)))
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        states.append(torch.load(output, weights_only=True))
    for key, value in states[0].items():
        torch.testing.assert_close(
            states[1][key], value, atol=1e-5, rtol=1e-4, msg=lambda told, key=key: f"{key}: {told}"
        )
