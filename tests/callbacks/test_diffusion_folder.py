"""A model that is spread over processes is written whole, also where the command made it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters_context

from callbacks import diffusion_folder


class Model(LightningModule):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Linear(size, 1)

    def save_model(self, folder: str) -> None:
        torch.save(self.state_dict(), folder)


def test_a_spread_model_that_the_command_made_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by = "lightning.pytorch.cli.instantiate_module"
    with _given_hyperparameters_context({"_class_path": "x.Model", "size": 3}, by):
        spread = Model(3)
    assert {"_class_path", "_instantiator"} < set(spread.hparams)
    gathered = {name: torch.full_like(value, 7) for name, value in spread.state_dict().items()}
    monkeypatch.setattr(diffusion_folder, "FSDPModule", torch.nn.Linear)
    strategy = SimpleNamespace(lightning_module_state_dict=lambda: gathered)
    trainer = SimpleNamespace(log_dir=str(tmp_path), is_global_zero=True, strategy=strategy)
    diffusion_folder.DiffusionFolder().on_fit_end(trainer, spread)
    written = torch.load(tmp_path / "diffusion", weights_only=True)
    assert all(torch.equal(written[name], value) for name, value in gathered.items())
