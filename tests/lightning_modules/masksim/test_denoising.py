import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from lightning_modules.masksim.denoising import DenoiserModule
from lightning_modules.masksim.module import MaskSimModule

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
TINY = {"depth": 4, "width": 8}


def smooth(count, seed, side=32):
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 4, generator=rng)
    grown = torch.nn.functional.interpolate(small, size=(side, side), mode="bicubic").clamp(0, 1)
    return (grown * 255).to(torch.uint8)


def test_it_learns_to_tell_noise_from_pictures_and_masksim_takes_it(tmp_path):
    torch.manual_seed(0)
    module = DenoiserModule(**TINY, lr=5e-3, sigma_levels=4.0)
    batches = [{"image": smooth(8, seed), "index": 8 * seed + torch.arange(8)} for seed in range(20)]
    unseen = torch.utils.data.DataLoader([{"image": smooth(16, 100)[:, None]}], batch_size=None)
    trainer = Trainer(max_epochs=6, enable_checkpointing=False, **QUIET)
    trainer.validate(module, unseen, verbose=False)
    before = float(trainer.callback_metrics["val/loss"])
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    trainer.validate(module, unseen, verbose=False)
    after = float(trainer.callback_metrics["val/loss"])
    assert before > 0.8
    assert after < 0.7, "a denoiser that sees nothing has 1"
    # In units of the deviation: noise of 4 levels is answered with a deviation near one.
    module.eval()
    noisy = smooth(1, 5)[0].float() / 255 + 4 / 255 * torch.randn(3, 32, 32)
    residual = module.denoiser(noisy[None])
    assert residual.shape == (1, 3, 24, 24)
    assert 0.5 < float(residual.detach().std()) < 1.5
    path = tmp_path / "denoiser.ckpt"
    trainer.save_checkpoint(path)
    arguments = {"img_size": 24, "denoiser_depth": 4, "denoiser_width": 8, "denoiser_weights": str(path)}
    taken = MaskSimModule(["a"], **arguments, freeze_denoiser=True)
    state = taken.trunks[0].preproc.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in module.denoiser.state_dict().items())
    again = DenoiserModule(**TINY, weights=str(path))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in module.state_dict().items())


def test_the_loss_of_silence_is_one_and_noise_is_that_of_the_sample():
    module = DenoiserModule(**TINY, color="rgb").eval()
    for parameter in module.denoiser.model[-1].parameters():
        parameter.data.zero_()
    batch = {"image": smooth(8, 0, side=64)}
    batches = [batch | {"index": first + torch.arange(8)} for first in (1, 1, 2)]
    losses = [float(module.training_step(batch, 0).detach()) for batch in batches]
    assert losses[0] == losses[1] != losses[2]
    np.testing.assert_allclose(losses, 1.0, atol=0.03)


def test_only_real_pictures_are_learnt_from():
    module = DenoiserModule(**TINY).eval()
    batch = {"image": smooth(4, 0), "label": torch.tensor([0.0, 1.0, 0.0, 1.0]), "index": torch.arange(4)}
    real = {"image": batch["image"][::2], "index": batch["index"][::2]}
    losses = [float(module.training_step(given, 0).detach()) for given in (batch, real)]
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="has no real picture to learn from"):
        module.training_step(batch | {"label": torch.ones(4)}, 0)


def test_wrong_arguments_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="`sigma_levels` must be positive, got 0"):
        DenoiserModule(sigma_levels=0)
    with pytest.raises(FileNotFoundError, match="no weight file at"):
        DenoiserModule(weights=str(tmp_path / "none.ckpt"))
