import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule
from lightning_modules.weights import save_weights

SMALL = {"encoder": "resnet18", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
QUIET |= {"enable_checkpointing": False}


def marked_batch(batch=4, side=32, seed=0):
    """Noise with a bright half-transparent square in each image."""
    rng = torch.Generator().manual_seed(seed)
    clean = 0.5 * torch.rand(batch, 3, side, side, generator=rng)
    mask = torch.zeros(batch, 1, side, side)
    for i in range(batch):
        mask[i, :, 4 + i : 18 + i, 6 : 20 - i] = 1
    alpha, color = 0.6 * mask, torch.tensor([0.9, 0.8, 0.1]).view(1, 3, 1, 1) * mask
    ignore = torch.zeros_like(mask, dtype=torch.bool)
    ignore[..., :2] = True
    return {
        "image": alpha * color + (1 - alpha) * clean,
        "clean": clean,
        "mask": mask,
        "ignore": ignore,
        "alpha": alpha,
        "color": color,
        "index": torch.arange(batch),
        "path": [f"{i}.png" for i in range(batch)],
        "family": ["logo"] * batch,
        "opacity": torch.full((batch,), 0.6),
    }


def loader(batch, times):
    return torch.utils.data.DataLoader([batch] * times, batch_size=None)


@pytest.mark.parametrize("heads", [False, True])
def test_the_loss_falls_on_a_few_images(heads):
    torch.manual_seed(0)
    module = WatermarkSegmentationModule(**SMALL, alpha_head=heads, color_head=heads, lr=3e-3)
    batch = marked_batch()
    before = module._shared_step(batch)[0]
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(module, loader(batch, 40))
    assert trainer.callback_metrics["train/loss"] < 0.4 * before
    module.eval()
    predicted = module.probability(batch["image"]) > 0.5
    overlap = (predicted & (batch["mask"] > 0)).sum() / (predicted | (batch["mask"] > 0)).sum()
    assert overlap > 0.7


def test_validation_returns_what_callbacks_read_and_logs_the_loss():
    module, batch, seen = WatermarkSegmentationModule(**SMALL), marked_batch(), {}
    module.on_validation_batch_end = lambda outputs, *_: seen.update(outputs)
    trainer = Trainer(**QUIET)
    trainer.validate(module, loader(batch, 1), verbose=False)
    assert set(seen) == {"index", "probability", "mask", "ignore", "family", "opacity", "image"}
    assert seen["probability"].shape == (4, 1, 32, 32)
    assert 0 <= seen["probability"].min() <= seen["probability"].max() <= 1
    assert trainer.callback_metrics["val/loss"] > 0
    trainer.test(module, loader(batch, 1), verbose=False)
    assert trainer.callback_metrics["test/loss"] > 0


def test_prediction_of_images_of_any_size():
    module = WatermarkSegmentationModule(**SMALL).eval()
    images = [torch.rand(3, 40, 50), torch.rand(3, 64, 33)]
    outputs = module.predict_step({"image": images, "index": torch.tensor([3, 7]), "path": ["a", "b"]}, 0)
    assert [(r["path"], r["index"]) for r in outputs["records"]] == [("a", 3), ("b", 7)]
    assert [o["mask"].shape for o in outputs["images"]] == [(40, 50), (64, 33)]
    assert all(o["mask"].dtype == np.uint8 for o in outputs["images"])
    empty = module.predict_step({"image": [], "index": torch.zeros(0), "path": [], "skipped": []}, 0)
    assert empty == {"records": [], "images": []}


def test_a_calibrated_threshold_travels_in_checkpoints_but_not_in_the_state_dict(tmp_path):
    module = WatermarkSegmentationModule(**SMALL)
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(module, loader(marked_batch(), 1))
    module.threshold = 0.37
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    assert torch.load(tmp_path / "m.ckpt", weights_only=True)["calibration"] == {"threshold": 0.37}
    restored = WatermarkSegmentationModule.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert restored.threshold == 0.37
    assert not any("threshold" in key for key in module.state_dict())
    # A threshold that was asked for by number wins.
    named = WatermarkSegmentationModule.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True, threshold=0.2)
    assert named.threshold == 0.2
    assert WatermarkSegmentationModule(**SMALL, weights=str(tmp_path / "m.ckpt")).threshold == 0.37


@pytest.mark.parametrize("layout", ["released", "own", "module"])
def test_weights_of_each_layout_load_strictly(tmp_path, layout):
    torch.manual_seed(0)
    source = WatermarkSegmentationModule(**SMALL).eval()
    path = tmp_path / ("w.safetensors" if layout == "own" else "w.pth")
    if layout == "released":
        torch.save(source.network.state_dict(), path)
    elif layout == "module":
        torch.save(source.state_dict(), path)
    else:
        save_weights(source.network, path, {"calibration": {"threshold": 0.41}})
    target = WatermarkSegmentationModule(**SMALL, weights=str(path)).eval()
    images = marked_batch()["image"]
    with torch.inference_mode():
        assert torch.equal(target(images), source(images))
    assert target.threshold == (0.41 if layout == "own" else 0.5)


def test_weights_of_another_architecture_are_refused_in_one_line(tmp_path):
    torch.save(WatermarkSegmentationModule(**SMALL, alpha_head=True).network.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"segmentation_head\.0\.weight \(2, 8, 3, 3\) for \(1, 8, 3, 3\)") as error:
        WatermarkSegmentationModule(**SMALL, weights=str(tmp_path / "w.pth"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("head", "missing"), [("alpha_head", "alpha"), ("color_head", "color"), ("color_head", "alpha")]
)
def test_a_head_without_its_truth_names_the_setting(head, missing):
    module, batch = WatermarkSegmentationModule(**SMALL, **{head: True}), marked_batch()
    del batch[missing]
    with pytest.raises(ValueError, match=rf"model\.{head} needs samples .* set data\.parts true"):
        module._shared_step(batch)


def test_shipped_weights_are_taken_by_name(tmp_path, monkeypatch):
    torch.manual_seed(0)
    source = WatermarkSegmentationModule(**SMALL)
    save_weights(source.network, tmp_path / "w.safetensors", {"calibration": {"threshold": 0.3}})
    monkeypatch.setattr("lightning_modules.watermark_segmentation.module.SHIPPED_WEIGHTS", tmp_path / "w.safetensors")
    target = WatermarkSegmentationModule(**SMALL, weights="shipped")
    assert target.threshold == 0.3
    assert torch.equal(next(target.parameters()), next(source.parameters()))


TWO_RANKS = """
import sys
import torch
from lightning.pytorch import Trainer
sys.path.insert(0, {folder!r})
from test_module import QUIET, SMALL, loader, marked_batch
from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule

class Frozen(WatermarkSegmentationModule):
    def on_train_batch_start(self, batch, batch_idx):
        self.network.eval()  # batch statistics are a rank's own

torch.manual_seed(0)
module = Frozen(**SMALL, loss={loss!r}, optimizer="sgd", lr=0.1, schedule="constant", weight_decay=0.0)
ranks = {ranks}
strategy = "ddp" if ranks > 1 else "auto"
trainer = Trainer(max_epochs=1, devices=ranks, strategy=strategy, use_distributed_sampler=False, **QUIET)
batch = marked_batch(batch=4)
batch["mask"][2:] = 0
if ranks > 1:
    import os
    rank = int(os.environ.get("LOCAL_RANK", 0))
    batch = {{key: value[2 * rank : 2 * rank + 2] for key, value in batch.items()}}
trainer.fit(module, loader(batch, 1))
if trainer.is_global_zero:
    torch.save(module.state_dict(), {output!r})
"""


@pytest.mark.slow
def test_two_processes_step_as_one_does(tmp_path):
    """Rank 1 has clean images only, which Dice of its own half could not learn from."""
    states = []
    for ranks in (1, 2):
        output = tmp_path / f"{ranks}.pt"
        fields = {"folder": str(Path(__file__).parent), "ranks": ranks, "output": str(output)}
        script = tmp_path / f"{ranks}.py"
        script.write_text(textwrap.dedent(TWO_RANKS.format(loss="bce_dice", **fields)))
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        states.append(torch.load(output, weights_only=True))
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, atol=1e-6, rtol=1e-5, msg=key)
