"""Training of both players on tiny networks: who moves when, what a checkpoint keeps, what a sample depends on."""

import copy

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_modules.functional.geometry import frame_corners_px
from lightning_modules.functional.sync_reliability import Reliability
from lightning_modules.syncseal.augmentation.settings import GeometricSettings, ValueSettings
from lightning_modules.syncseal.module import SyncSealModule
from lightning_modules.syncseal.published import write_published

SMALL = {
    "size": 32,
    "embedder_channels": (8, 16),
    "embedder_blocks": 1,
    "detector_depths": (1, 1),
    "detector_dims": (8, 16),
    "lr": 1e-2,
    "transforms": ("identity", "rotate_20", "crop_0.6"),
}
FEW_VALUES = ValueSettings(weights={"brightness": 1}, stages=1)


def built(**changes):
    torch.manual_seed(0)
    return SyncSealModule(**(SMALL | {"values": FEW_VALUES} | changes))


def pictures(count=4, size=32):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.random((count, 3, size, size), np.float32))


def fitted(module, tmp_path, steps=1, images=None, epochs=1, callbacks=(), ckpt_path=None, **settings):
    images = pictures() if images is None else images
    samples = [{"image": image, "index": torch.tensor(place)} for place, image in enumerate(images)]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=steps,
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        **settings,
    )
    # The loader's own seed: its order must not come from the stream that initialised the networks.
    trainer.fit(module, DataLoader(samples * steps, batch_size=len(samples)), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def state(network):
    return copy.deepcopy(network.state_dict())


def moved(network, before):
    return {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}


def trained_names(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_a_step_moves_both_players_and_counts_once(tmp_path):
    module = built(disc_start=0)
    before, before_discriminator = state(module.network), state(module.discriminator)
    trainer = fitted(module, tmp_path, steps=3)
    assert trainer.global_step == 3
    assert moved(module.network, before) == trained_names(module.network)
    assert moved(module.discriminator, before_discriminator) == trained_names(module.discriminator)


def test_before_its_start_the_discriminator_does_not_count(tmp_path):
    alone, with_one = built(disc_weight=0.0), built(disc_start=1, weight_decay=0.0)
    with_one.network.load_state_dict(alone.network.state_dict())
    alone.hparams["weight_decay"] = 0.0
    before = state(with_one.discriminator)
    for module in (alone, with_one):
        fitted(module, tmp_path, steps=2)
    assert not moved(with_one.discriminator, before)
    assert not moved(with_one.network, alone.network.state_dict())


@pytest.mark.parametrize("broken", ["picture", "gradient"])
def test_what_is_not_a_number_moves_nothing_and_the_next_step_goes_on(tmp_path, broken):
    module = built(disc_start=0)
    before, before_discriminator = state(module.network), state(module.discriminator)
    images = pictures()
    if broken == "picture":
        images[0, 0, 0, 0] = torch.nan
    else:
        module.network.detector.head.linear.weight.register_hook(lambda gradient: gradient * torch.nan)
    trainer = fitted(module, tmp_path, images=images)
    assert trainer.global_step == 1
    assert not moved(module.network, before)
    assert not moved(module.discriminator, before_discriminator)


def test_only_the_discriminators_loss_is_left_out_where_it_alone_is_broken(tmp_path):
    module = built(disc_start=0)
    torch.nn.init.constant_(module.discriminator.main[0].weight, torch.nan)
    module.loss_weights = module.loss_weights.__class__(discriminator=0.0)
    before, before_discriminator = state(module.network), state(module.discriminator)
    fitted(module, tmp_path)
    # The adversarial term is not a number either, whatever its weight: nobody moves, nobody is decayed.
    assert not moved(module.network, before)
    assert not {key for key in moved(module.discriminator, before_discriminator) if key != "main.0.weight"}


def test_clipping_bounds_embedder_and_detector_alone(tmp_path):
    class Norms(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.network = torch.cat([p.grad.flatten() for p in module.network.parameters() if p.grad is not None])
            self.rival = torch.cat([p.grad.flatten() for p in module.discriminator.parameters()]).norm().item()

    norms = []
    for limit in (1000.0, 1e-3):
        callback = Norms()
        fitted(built(disc_start=0, clip_norm=limit), tmp_path, callbacks=[callback])
        norms.append((callback.network.norm().item(), callback.rival))
    assert norms[0][0] > 0.01
    assert norms[1][0] == pytest.approx(1e-3, rel=1e-3)
    assert norms[0][1] == norms[1][1] > 0


def test_finetuning_moves_the_detector_alone_and_keeps_running_statistics(tmp_path):
    module = built(embedder="relu_batch", finetune_detector_start=1, disc_start=0, pixel_weight=1.0)
    after_first = {}

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 0:
                after_first.update(network=state(module.network), discriminator=state(module.discriminator))

    start = state(module.network)
    trainer = fitted(module, tmp_path, steps=2, epochs=2, callbacks=[Watch()])
    statistics = "embedder.unet.inc.double_conv.1.running_mean"
    assert not torch.equal(start[statistics], after_first["network"][statistics])
    changed = moved(module.network, after_first["network"])
    assert changed == {name for name in trained_names(module.network) if name.startswith("detector.")}
    assert not moved(module.discriminator, after_first["discriminator"])
    assert trainer.global_step == 4


def test_strength_follows_the_epochs_and_travels_with_the_weights(tmp_path):
    changes = {"scaling_w": 0.8, "scaling_schedule": "linear", "scaling_min": 0.2, "scaling_epochs": 2}
    module = built(**changes)
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            seen.append(module.network.scaling_w)

    trainer = fitted(module, tmp_path, epochs=4, callbacks=[Watch()])
    assert seen == pytest.approx([0.8, 0.5, 0.2, 0.2])
    module.reliability = Reliability(0.5, 0.01, 0.01, 0.02, "presence", 500, 500, 1, 1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["values"]["weights"] == {"brightness": 1}
    reread = built(**changes, weights=str(tmp_path / "last.ckpt"))
    assert reread.network.scaling_w == pytest.approx(0.2)
    assert reread.reliability == module.reliability
    assert built(scaling_w=0.7, weights=str(tmp_path / "last.ckpt")).network.scaling_w == 0.7, "as the user says"
    again = SyncSealModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert again.values == FEW_VALUES
    assert again.geometric == GeometricSettings()
    fitted(reread, tmp_path, epochs=5, ckpt_path=tmp_path / "last.ckpt")
    assert reread.reliability == module.reliability, "a resumed training has that of its checkpoint"
    fitted(reread, tmp_path)
    assert reread.reliability is None, "it is not of weights that were trained on"


def test_a_published_checkpoint_starts_a_training(tmp_path):
    source = built()
    write_published(source.network, tmp_path / "checkpoint.pth", source.discriminator)
    torch.manual_seed(1)
    module = SyncSealModule(**SMALL, weights=str(tmp_path / "checkpoint.pth"))
    assert not moved(module.network, source.network.state_dict())
    assert not moved(module.discriminator, source.discriminator.state_dict())


def test_the_saved_weights_are_the_average_of_every_step(tmp_path):
    steps = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            steps.append(state(module.network))

    saving = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    module = built(disc_start=0, ema_decay=0.5)
    average = state(module.network)
    fitted(module, tmp_path, steps=3, callbacks=[Watch(), saving])
    content = torch.load(tmp_path / "step=3.ckpt", weights_only=True)
    # The first update of an average takes the weights as they are.
    average = steps[0]
    for weights in steps[1:]:
        average = {key: 0.5 * average[key] + 0.5 * value for key, value in weights.items()}
    assert len(steps) == 3
    for key, value in average.items():
        torch.testing.assert_close(content["state_dict"][f"network.{key}"], value, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(content["current_model_state"][f"network.{key}"], steps[-1][key])


def test_two_halves_of_a_batch_have_its_gradient():
    """So two processes train as one: losses are means over pictures whose draws do not know their batch."""
    module = built(disc_weight=0.0, presence_weight=0.5, unmarked_share=1.0)
    images, index = pictures(), torch.arange(4)

    def gradient(*parts):
        module.zero_grad()
        for part in parts:
            (module.losses_of(images[part], index[part])[0].total / len(parts)).backward()
        return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    whole, halves = gradient(slice(None)), gradient(slice(0, 2), slice(2, 4))
    assert whole
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_draws_change_with_the_epoch_and_the_picture_alone():
    module, images = built(), pictures()
    nothing = images[:0]
    first = module.attack(images, nothing, torch.arange(4))
    part = module.attack(images[2:], nothing, torch.arange(2, 4))
    torch.testing.assert_close(part.quads_px, first.quads_px[2:])
    both = module.attack(images, images[:2], torch.arange(4))
    torch.testing.assert_close(both.quads_px[:4], first.quads_px)
    assert not torch.equal(both.quads_px[4:], first.quads_px[:2]), "unmarked pictures have draws of their own"
    assert not torch.equal(module.attack(images, nothing, torch.arange(4, 8)).quads_px, first.quads_px)


def test_evaluation_measures_what_the_detector_says():
    module = built()
    frame = frame_corners_px(32, 32).float()
    normalised = ((frame - 16) / 16).flatten()
    # A detector that always answers "not moved".
    torch.nn.init.zeros_(module.network.detector.head.linear.weight)
    module.network.detector.head.linear.bias.data = torch.cat([torch.zeros(1), normalised])
    images = pictures()
    with torch.no_grad():
        outputs = module.eval().validation_step({"image": images, "index": torch.arange(4)}, 0)
        alone = module.validation_step({"image": images[1:2], "index": torch.tensor([1])}, 0)
    torch.testing.assert_close(outputs["corner_error_px"], outputs["identity_error_px"], rtol=0, atol=1e-4)
    assert outputs["transforms"] == ["identity", "rotate_20", "crop_0.6"]
    radius = 15.5 * 2**0.5
    wanted = torch.full((4,), 2 * radius * np.sin(np.radians(10)))
    torch.testing.assert_close(outputs["corner_error_px"][:, 1], wanted.float(), rtol=1e-3, atol=1e-3)
    assert (outputs["corner_error_px"][:, 0] < 1e-4).all()
    for name, value in alone.items():
        if torch.is_tensor(value):
            torch.testing.assert_close(value[0], outputs[name][1], equal_nan=True, msg=name)
    mse = (module.network.embed(images).marked - images).square().flatten(1).mean(1)
    torch.testing.assert_close(outputs["psnr"], -10 * mse.log10())


def test_a_test_by_set_ups_names_them():
    module = built(setups="wibe")
    with torch.no_grad():
        outputs = module.eval().test_step({"image": pictures(2), "index": torch.arange(2)}, 0)
    assert outputs["setups"] == module.setup_labels
    assert outputs["corner_error_px"].shape == (2, len(module.setup_labels))
    assert built().setup_labels == []


def test_predict_takes_pictures_of_any_sizes():
    module = built(predict={"mode": "rectify"}).eval()
    batch = {
        "image": [pictures(1, 40)[0, :, :33], pictures(1, 64)[0]],
        "index": torch.tensor([3, 4]),
        "path": ["a.png", "b.png"],
    }
    predicted = module.predict_step(batch, 0)
    assert [record["path"] for record in predicted["records"]] == ["a.png", "b.png"]
    assert [len(record["corners_px"]) for record in predicted["records"]] == [4, 4]
    before = module.prediction_fingerprint()
    module.network.scaling_w = 0.9
    assert module.prediction_fingerprint() != before


def test_export_hands_over_the_chosen_part():
    images = pictures(2, 48)
    for part in ("detector", "embedder"):
        module = built(export_part=part).eval()
        with torch.no_grad():
            wanted = module(images) if part == "detector" else module.network.embed(images).marked
            exported = module.export_program().network(images)
        torch.testing.assert_close(exported, wanted, rtol=0, atol=1 / 255 if part == "embedder" else 1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unmarked_share": 1.5}, r"`unmarked_share` must be in \[0, 1\], got 1.5"),
        ({"sync_weight": 0.0}, "`sync_weight` must be above 0"),
        ({"scaling_schedule": "cosine"}, "`scaling_epochs` must be at least 1"),
    ],
)
def test_mistakes_are_said(changes, message):
    with pytest.raises(ValueError, match=message):
        built(**changes)


def test_bfloat16_trains_and_float16_is_refused(tmp_path):
    module = built(disc_start=0)
    trainer = fitted(module, tmp_path, precision="bf16-mixed")
    assert trainer.callback_metrics["train/loss"].isfinite()
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    module._trainer = trainer
    trainer.strategy.precision_plugin.precision = "16-mixed"
    with pytest.raises(ValueError, match="use bf16-mixed"):
        module.on_fit_start()


def test_presence_is_learnt_from_unmarked_pictures(tmp_path):
    module = built(
        presence_weight=1.0, unmarked_share=1.0, disc_weight=0.0, scaling_w=1.0, values=ValueSettings(stages=0)
    )
    module.geometric = GeometricSettings(weights={"identity": 1}, stages=1)
    fitted(module, tmp_path, steps=40)
    with torch.no_grad():
        outputs = module.eval().validation_step({"image": pictures(), "index": torch.arange(4)}, 0)
    assert (outputs["presence"][:, 0] > 0).all()
    assert (outputs["presence_unmarked"][:, 0] < 0).all()
