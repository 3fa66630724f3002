import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lightning_modules.functional.detection_calibration import Calibration
from lightning_modules.masksim.module import MaskSimModule
from lightning_modules.masksim.network import MaskSimNetwork
from lightning_modules.masksim.published import write_detector
from lightning_modules.weights import save_weights

ROOT = Path(__file__).resolve().parents[3]
SMALL = {"img_size": 24, "denoiser_depth": 3, "denoiser_width": 4}
OURS = {"loss": "sealmark", "relative_floor": 1e-3, "tied": True}
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def batch_of(count=12, seed=0, side=24, generators=("rows", "columns")):
    """Noise; generated ones with a faint wave of a period of their own, up or across."""
    rng = torch.Generator().manual_seed(seed)
    image = 0.5 + 0.1 * torch.randn(count, 3, side, side, generator=rng)
    label = torch.arange(count) % 2
    wave = 0.05 * torch.cos(torch.arange(side) * 2 * torch.pi / 3)
    names = []
    for place in range(count):
        kind = generators[place // 2 % len(generators)]
        names.append(kind if label[place] else "real")
        if label[place]:
            image[place] += wave[:, None] if kind == "rows" else wave[None]
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return {"image": pixels, "label": label.float(), "generator": names, "index": torch.arange(count)}


def loader(*batches):
    return DataLoader(list(batches), batch_size=None)


def auroc(logit, positive):
    return float((logit[positive][:, None] > logit[~positive][None]).float().mean())


@pytest.mark.parametrize("changes", [{"loss": "reference"}, OURS], ids=["reference", "sealmark"])
def test_heads_learn_their_generators(changes):
    torch.manual_seed(0)
    module = MaskSimModule(["rows", "columns"], 24, "identity", lr=0.02, **changes)
    trainer = Trainer(max_epochs=8, enable_checkpointing=False, num_sanity_val_steps=0, **QUIET)
    trainer.fit(module, loader(*[batch_of(16, seed) for seed in range(8)]), loader(batch_of(64, 90)))
    if changes is OURS:  # the published loss of real ones is that of their size: it stays near log 2 for long
        assert float(trainer.callback_metrics["val/loss"]) < 0.65
    unseen = batch_of(200, 99)
    outputs = module.eval().validation_step({**unseen, "image": unseen["image"][:, None]}, 0)
    assert outputs["logit"].shape == (200, 1, 2)
    logit = outputs["logit"][:, 0]
    real = unseen["label"] == 0
    for head, name in enumerate(("rows", "columns")):
        own = torch.tensor([generator == name for generator in unseen["generator"]])
        assert auroc(logit[own | real, head], own[own | real]) > (0.95 if changes is OURS else 0.85)
        assert auroc(logit[~own, head], ~real[~own]) < 0.8, "the other generator is not this head's"


@pytest.mark.parametrize("preprocess", ["dncnn", "linear3x3", "cross_diff", "identity"])
def test_training_moves_what_is_not_frozen(preprocess):
    for frozen in (False, True):
        module = MaskSimModule(["rows", "columns"], preprocess=preprocess, freeze_denoiser=frozen, **SMALL)
        before = {key: value.clone() for key, value in module.state_dict().items()}
        Trainer(max_steps=2, enable_checkpointing=False, **QUIET).fit(module, loader(batch_of(), batch_of(seed=1)))
        changed = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
        trunk = {key for key in before if key.startswith("trunks")}
        assert {key for key in before if key.startswith("heads")} <= changed
        moves = set() if frozen or preprocess == "cross_diff" else trunk
        assert changed & trunk == moves, "batch norm of a frozen denoiser included"
        rates = [group["lr"] for group in module.configure_optimizers()["optimizer"].param_groups]
        assert rates == ([1e-3, 1e-4] if preprocess == "dncnn" and not frozen else [1e-3])


def test_module_and_published_network_take_the_same_steps_in_float64():
    torch.manual_seed(0)
    network = MaskSimNetwork(24, "dncnn", denoiser_depth=3, denoiser_width=4).double()
    module = MaskSimModule(["rows"], color="rgb", **SMALL).double()
    module.trunks[0].load_detector(network)
    module.heads.load_detector(0, network)
    batch = batch_of(8, generators=("rows",))
    batch["image"] = batch["image"].double() / 255
    own = list(network.preproc.parameters())
    rest = [p for p in network.parameters() if p.requires_grad and all(p is not q for q in own)]
    theirs = torch.optim.Adam([{"params": rest, "lr": 1e-3}, {"params": own, "lr": 1e-4}])
    ours = module.configure_optimizers()["optimizer"]
    positive = batch["label"] > 0.5
    network.train()
    module.train()
    for _ in range(3):
        similarity = network.similarity(network.log_spectrum(batch["image"]))
        probability = network.logit(torch.where(positive, similarity, similarity.abs())).sigmoid()
        expected = torch.nn.functional.binary_cross_entropy(probability, batch["label"].double())
        loss = module.training_step(batch, 0)
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
        for optimizer, value in ((theirs, expected), (ours, loss)):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    module.hparams["color"] = "ycbcr"
    state = module.detector("rows").state_dict()
    for key, value in network.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=1e-6, msg=key)


def test_cached_spectra_train_heads_as_windows_do():
    torch.manual_seed(0)
    module = MaskSimModule(["rows", "columns"], freeze_denoiser=True, **SMALL, **OURS).double()
    batch = batch_of()
    batch["image"] = batch["image"].double() / 255
    cached = {key: value for key, value in batch.items() if key != "image"}
    cached["spectrum"] = module.cache_spectrum(batch["image"])
    assert cached["spectrum"].shape == (12, 3, 18, 10)
    gradients = []
    for given in (batch, cached):
        module.zero_grad()
        module.train().training_step(given, 0).backward()
        gradients.append([p.grad.clone() for p in module.heads.parameters()])
    for windows, spectra in zip(*gradients, strict=True):
        torch.testing.assert_close(spectra, windows, rtol=1e-6, atol=1e-10)
    module.eval()
    seen = [module.test_step({**given, "index": torch.arange(12)}, 0)["logit"] for given in (batch, cached)]
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"cached spectra of \(18, 9\) do not fit 1 trunk"):
        module.training_step({**cached, "spectrum": cached["spectrum"][..., :-1]}, 0)
    separate = MaskSimModule(["a", "b"], shared_trunk=False, **SMALL)
    with pytest.raises(ValueError, match="a cache holds one: share the trunk"):
        separate.cache_spectrum(batch_of()["image"])


def test_views_are_scored_each_and_the_scorer_follows_the_weights():
    torch.manual_seed(0)
    module = MaskSimModule(["rows", "columns"], **SMALL).eval()
    image = torch.stack([batch_of(4, seed)["image"] for seed in (0, 1, 2)], dim=1)
    batch = batch_of(4) | {"image": image}
    logit = module.test_step(batch, 0)["logit"]
    assert logit.shape == (4, 3, 2)
    for view in range(3):
        torch.testing.assert_close(logit[:, view], module(image[:, view].float() / 255), rtol=0, atol=1e-3)
    kept = module.scorer()
    assert module.scorer() is kept
    with torch.no_grad():
        module.heads.offset += 1
    assert module.scorer() is not kept
    torch.testing.assert_close(module.test_step(batch, 0)["logit"], logit + 1)
    module.heads.offset.data.sub_(1)  # leaves no trace, as averaging of weights does not
    module.on_validation_epoch_start()
    torch.testing.assert_close(module.test_step(batch, 0)["logit"], logit)
    assert not any("scorer" in key for key in module.state_dict())


def test_averaged_weights_are_what_is_validated():
    torch.manual_seed(0)
    module = MaskSimModule(["rows", "columns"], 24, "identity", lr=0.05, ema_decay=0.5, **OURS)
    seen = []
    module.validation_step = lambda batch, batch_idx: seen.append(
        (module.scorer().heads.offset - module.heads.offset).abs()
    )
    trainer = Trainer(max_epochs=2, enable_checkpointing=False, num_sanity_val_steps=0, **QUIET)
    trainer.fit(module, loader(batch_of(), batch_of(seed=1)), loader(batch_of()))
    assert len(seen) == 2
    assert all(not difference.any() for difference in seen)


def test_weights_and_calibration_travel_in_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    module = MaskSimModule(["rows", "columns"], **SMALL, **OURS)
    trainer = Trainer(max_steps=1, enable_checkpointing=False, **QUIET)
    trainer.fit(module, loader(batch_of()))
    module.calibration = Calibration.fit(np.random.default_rng(0).normal(size=(200, 2)), ["rows", "columns"])
    path, plain = tmp_path / "run.ckpt", tmp_path / "ours.safetensors"
    trainer.save_checkpoint(path)
    save_weights(module, plain, {})
    image = batch_of()["image"].float() / 255
    expected = module.eval()(image)
    for file in (path, plain):
        again = MaskSimModule(["rows", "columns"], **SMALL, **OURS, weights=str(file)).eval()
        torch.testing.assert_close(again(image), expected)
    restored = MaskSimModule.load_from_checkpoint(path, weights_only=True, map_location="cpu")
    for taken in (restored, MaskSimModule(["rows", "columns"], **SMALL, **OURS, weights=str(path))):
        logits = np.array([[0.3, -1.0]])
        np.testing.assert_array_equal(taken.calibration.p_values(logits), module.calibration.p_values(logits))
    with pytest.raises(ValueError, match=r"the calibration is of rows, columns, model\.generators are columns, rows"):
        MaskSimModule(["columns", "rows"], **SMALL, **OURS, weights=str(path))
    before = restored.prediction_fingerprint()
    Trainer(max_steps=1, enable_checkpointing=False, **QUIET).fit(restored, loader(batch_of()))
    assert restored.calibration is None, "a calibration is not of weights that were trained on"
    assert restored.prediction_fingerprint() != before


def test_a_resumed_training_has_the_calibration_of_its_checkpoint(tmp_path):
    def trained(steps, path=None, **weights):
        module = MaskSimModule(["rows", "columns"], **SMALL, **OURS, **weights)
        trainer = Trainer(max_steps=steps, enable_checkpointing=False, **QUIET)
        trainer.fit(module, loader(batch_of()), ckpt_path=path, weights_only=True)
        return trainer, module

    trainer, module = trained(1)
    trainer.save_checkpoint(tmp_path / "without.ckpt")
    module.calibration = Calibration.fit(np.random.default_rng(0).normal(size=(200, 2)), ["rows", "columns"])
    trainer.save_checkpoint(tmp_path / "with.ckpt")
    kept = trained(2, tmp_path / "with.ckpt")[1].calibration
    np.testing.assert_array_equal(kept.scores, module.calibration.scores)
    other = trained(2, tmp_path / "without.ckpt", weights=str(tmp_path / "with.ckpt"))[1]
    assert other.calibration is None, "a calibration came with weights that the checkpoint replaced"


def test_a_published_checkpoint_trains_on(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "rows-epoch=01.ckpt"
    write_detector(MaskSimNetwork(24, "dncnn", denoiser_depth=3, denoiser_width=4), path)
    module = MaskSimModule(["rows"], **SMALL, weights=str(path))
    trainer = Trainer(max_steps=2, enable_checkpointing=False, **QUIET)
    trainer.fit(module, loader(batch_of(generators=("rows",)), batch_of(seed=1, generators=("rows",))))
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert int(module.heads.num_batches_tracked) == 2


def test_mistakes_are_one_line():
    module = MaskSimModule(["rows"], 24, "identity")
    with pytest.raises(ValueError, match=r"pictures of columns have no head: add it to model\.generators \(rows\)"):
        module.training_step(batch_of(), 0)
    cases = [
        ({"preprocess": "DnCNN"}, "must be one of dncnn, linear3x3, cross_diff, identity"),
        ({"loss": "bce"}, "`loss` must be reference or sealmark"),
        ({"color": "lab"}, "`color` must be ycbcr or rgb"),
        ({"generators": ["a", "a"]}, "different names"),
        ({"generators": ["real"]}, "none of them real"),
        ({"kernel_size": 4}, "`kernel_size` must be odd"),
        ({"preprocess": "identity", "denoiser_weights": "x.th"}, "need `preprocess: dncnn`"),
        ({"relative_floor": -1.0}, "must not be negative"),
        ({"optimizer": "sgd"}, "must be adam or adamw"),
        ({"crops": "all"}, "`crops` must be"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            MaskSimModule(**{"generators": ["a"], **SMALL, **changes}).configure_optimizers()
        assert "\n" not in str(caught.value)


PROGRAM = """
import os, sys, torch, torch.distributed as dist
from torch.distributed.nn.functional import all_gather
from lightning_modules.masksim.module import MaskSimModule
rank, out = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
data = torch.load(out + "/in.pt")
module = MaskSimModule(**data["arguments"]).double()
module.load_state_dict(data["state"])
module.log = lambda *_, **__: None
module._processes = lambda: 2
module.sum_over_ranks = lambda values: torch.stack(all_gather(values.contiguous())).sum(dim=0)
part = data["parts"][rank]
loss = module.train().training_step(part, 0)
loss.backward()
gradients = []
for parameter in module.parameters():
    if parameter.grad is not None:
        dist.all_reduce(parameter.grad)
        gradients.append(parameter.grad / 2)
total = loss.detach().clone(); dist.all_reduce(total)
if rank == 0:
    state = {key: value for key, value in module.state_dict().items() if "running" in key}
    torch.save({"loss": total / 2, "gradients": gradients, "state": state}, out + "/out.pt")
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's threads at times abort the interpreter's own exit
"""


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(tmp_path):
    torch.manual_seed(0)
    arguments = {"generators": ["rows", "columns"], "img_size": 24, "preprocess": "linear3x3", **OURS}
    module = MaskSimModule(**arguments).double()
    batch = batch_of(14)
    batch["image"] = batch["image"].double() / 255
    # Unequal shares of the classes, and parts of unequal sizes.
    parts = [{k: v[a:b] for k, v in batch.items()} for a, b in ((0, 5), (5, 14))]
    torch.save({"arguments": arguments, "state": module.state_dict(), "parts": parts}, tmp_path / "in.pt")
    workers = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), str(tmp_path)], cwd=ROOT) for rank in (0, 1)]
    loss = module.train().training_step(batch, 0)
    loss.backward()
    assert [worker.wait(timeout=200) for worker in workers] == [0, 0]
    both = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(both["loss"], loss.detach(), rtol=1e-9, atol=1e-12)
    alone = [p.grad for p in module.parameters() if p.grad is not None]
    assert len(alone) == len(both["gradients"])
    for one, two in zip(alone, both["gradients"], strict=True):
        torch.testing.assert_close(two, one, rtol=1e-7, atol=1e-10)
    for key, value in both["state"].items():
        torch.testing.assert_close(module.state_dict()[key], value, rtol=1e-9, atol=1e-12)
