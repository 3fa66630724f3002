import math

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch import nn

from lightning_modules.base import ProvenanceModule, make_optimizer, schedule_factor

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Tiny(ProvenanceModule):
    def __init__(
        self,
        lr=0.1,
        weight_decay=0.0,
        optimizer="adamw",
        schedule="cosine",
        warmup_steps=2,
        min_lr=0.01,
        ema_decay=0.0,
        weights=None,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.build()
        self.rates = []
        self.draws = []

    def configure_models(self):
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def configure_losses(self):
        self.loss = nn.MSELoss()

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        self.draws.append(torch.rand(()).item())
        return self.loss(self.network(batch), batch.sum(1, keepdim=True))


def loader():
    data = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(list(data), batch_size=None)


def fit(module, tmp_path, epochs, ckpt_path=None, **options):
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer = Trainer(max_epochs=epochs, callbacks=[saver], default_root_dir=tmp_path, **QUIET | options)
    trainer.fit(module, loader(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def test_cosine_equals_torch():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, 1e-5)
    for step in range(20):
        ours = 2e-4 * schedule_factor(step, 20, "cosine", 0, 1e-5 / 2e-4)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        scheduler.step()


def test_schedules_rise_peak_and_end_where_they_should():
    cosine = [schedule_factor(step, 100, "cosine", 10, 0.1) for step in range(101)]
    assert cosine[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert cosine[10] == 1.0
    assert cosine[100] == pytest.approx(0.1)
    assert schedule_factor(250, 100, "cosine", 10, 0.1) == pytest.approx(0.1)
    cycle = [schedule_factor(step, 100, "one_cycle", 0, 0.0) for step in range(101)]
    assert cycle.index(max(cycle)) == 30
    assert cycle[30:] == sorted(cycle[30:], reverse=True)
    assert {schedule_factor(step, 0, "constant", 0, 0.0) for step in range(50)} == {1.0}


def test_adamw_spares_one_dimensional_parameters():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    decayed, spared = make_optimizer(net, "adamw", 1e-3, 0.1).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3)]
    assert (decayed["weight_decay"], spared["weight_decay"], len(spared["params"])) == (0.1, 0.0, 3)
    for name, kind in (("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)):
        assert type(make_optimizer(net, name, 1e-3, 0.1)) is kind
    with pytest.raises(ValueError, match="'lion'"):
        make_optimizer(net, "lion", 1e-3, 0.1)


def test_the_rate_follows_the_schedule_per_step(tmp_path):
    module = Tiny()
    fit(module, tmp_path, epochs=2)
    expected = [0.1 * schedule_factor(step, 12, "cosine", 2, 0.1) for step in range(12)]
    assert module.rates == pytest.approx(expected)


def test_the_rate_counts_accumulated_batches_as_one_step(tmp_path):
    module = Tiny(warmup_steps=0)
    fit(module, tmp_path, epochs=1, accumulate_grad_batches=2)
    expected = [0.1 * schedule_factor(step // 2, 3, "cosine", 0, 0.1) for step in range(6)]
    assert module.rates == pytest.approx(expected)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_resumed_run_equals_an_unbroken_one(tmp_path, ema_decay, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    torch.manual_seed(0)
    unbroken = Tiny(ema_decay=ema_decay)
    start = {key: value.clone() for key, value in unbroken.state_dict().items()}
    fit(unbroken, tmp_path, epochs=3)
    torch.manual_seed(99)
    resumed = Tiny(ema_decay=ema_decay)
    fit(resumed, tmp_path / "again", epochs=3, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert unbroken.draws[6:] == resumed.draws
    assert len(set(unbroken.draws)) == 18
    for key, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])
        assert not torch.equal(value, start[key])


def test_ema_saves_the_average_and_is_off_outside_of_fit(tmp_path):
    torch.manual_seed(0)
    averaged = Tiny(ema_decay=0.9)
    fit(averaged, tmp_path, epochs=1)
    saved = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    last, mean = saved["current_model_state"], saved["state_dict"]
    assert any(not torch.equal(last[key], mean[key]) for key in mean)
    assert all(torch.equal(averaged.state_dict()[key], mean[key]) for key in mean)
    assert Tiny(ema_decay=0.9).configure_callbacks() == []


def test_weights_are_loaded_after_building(tmp_path):
    source = Tiny()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    target = Tiny(weights=str(tmp_path / "w.pt"))
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in target.state_dict().items())


def test_hooks_are_required():
    class Hollow(ProvenanceModule):
        pass

    with pytest.raises(TypeError, match="configure_losses"):
        Hollow()


def test_one_process_sums_to_itself():
    values = torch.tensor([1.0, math.pi])
    assert torch.equal(Tiny().sum_over_ranks(values), values)


class Line(Tiny):
    """Linear, with plain descent, so that steps can be computed by hand."""

    def __init__(self, lr=0.1, weight_decay=0.0, optimizer="sgd", schedule="constant", warmup_steps=0, min_lr=0.0):
        super(Tiny, self).__init__()
        self.save_hyperparameters()
        self.build()
        self.rates, self.draws, self.seen = [], [], []

    def configure_models(self):
        self.network = nn.Linear(4, 1)

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        self.seen.append(self.network.weight.grad.clone())


def test_the_last_window_of_an_epoch_is_a_mean_over_its_own_batches(tmp_path):
    module = Line(lr=1e-9)  # stays where it is: gradients are compared
    weight, bias = module.network.weight.detach().clone(), module.network.bias.detach()
    fit(module, tmp_path, epochs=2, accumulate_grad_batches=4)
    gradients = []
    for batch in loader():
        leaf = weight.clone().requires_grad_()
        nn.functional.mse_loss(batch @ leaf.T + bias, batch.sum(1, keepdim=True)).backward()
        gradients.append(leaf.grad)
    wanted = [torch.stack(gradients[:4]).mean(0), torch.stack(gradients[4:]).mean(0)]
    assert len(module.seen) == 4, "six batches are two steps an epoch"
    for found, mean in zip(module.seen, wanted * 2, strict=True):
        torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-6)


class Obstructed(Line):
    def accumulation_obstacle(self):
        return "its loss is of the batch: take a larger one"


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 3}, {"callbacks": [1]}])
def test_accumulation_that_would_not_be_a_larger_batch_is_refused(tmp_path, options):
    if "callbacks" in options:
        options = {"callbacks": [GradientAccumulationScheduler({0: 1, 1: 3})]}
    trainer = Trainer(max_epochs=2, enable_checkpointing=False, default_root_dir=tmp_path, **QUIET | options)
    with pytest.raises(ValueError, match=r"accumulate_grad_batches 3 is not .* Obstructed: its loss is of"):
        trainer.fit(Obstructed(), loader())
    assert trainer.current_epoch == len(options.get("callbacks", []))


def test_manual_optimisation_is_refused_in_our_words(tmp_path):
    module = Obstructed()
    module.automatic_optimization = False
    with pytest.raises(ValueError, match="its loss is of the batch: take a larger one"):
        fit(module, tmp_path, epochs=1, accumulate_grad_batches=2)


def test_batch_norms_are_named_where_batches_are_accumulated(tmp_path):
    module = Line()
    module.norm = nn.BatchNorm1d(4)
    with pytest.warns(UserWarning, match="seen one by one by 1 batch norms, first norm"):
        fit(module, tmp_path, epochs=1, accumulate_grad_batches=2)
