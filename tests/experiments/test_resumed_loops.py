"""A run that goes on from any checkpoint does all that an unbroken one does after saving it, in that order."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.utils.data import Dataset

from datamodules.base import ProvenanceDataModule
from experiments.reliability.run_states import differences
from experiments.resumed_loops import FinishingFitLoop

# Resumed here in other folders, several in one.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory .* is not empty")
SETTINGS = {
    "validation within epochs": {"val_check_interval": 3, "check_val_every_n_epoch": None, "max_epochs": 2},
    "at a step that is the last": {"val_check_interval": 3, "check_val_every_n_epoch": None, "max_steps": 9},
    "at the end of epochs": {"max_epochs": 2},
    "at the end of every second": {"check_val_every_n_epoch": 2, "max_epochs": 4},
    "steps end within an epoch": {"max_steps": 6},
    "accumulated": {
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "accumulate_grad_batches": 2,
        "max_steps": 5,
    },
    "manual": {"val_check_interval": 3, "check_val_every_n_epoch": None, "max_steps": 9},
    "epochs cut short": {"limit_train_batches": 3, "max_epochs": 2},
}


class Numbers(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, key):
        return {"x": torch.tensor([float(key.index + key.epoch)]), "index": key.index}


class Data(ProvenanceDataModule):
    def build_dataset(self, split):
        return Numbers()


class Slope(LightningModule):
    def __init__(self, manual):
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.automatic_optimization = not manual

    def training_step(self, batch, batch_idx):
        loss = self.line(batch["x"]).pow(2).mean()
        self.log("train/loss", loss.detach(), batch_size=2)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.line(batch["x"]).pow(2).mean(), batch_size=2)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Rows(Logger):
    """Puts what is logged among the events."""

    name, version, experiment = "rows", 0, None

    def __init__(self, events):
        super().__init__()
        self.events = events

    def log_metrics(self, metrics, step=None):
        self.events.append(("row", step, tuple(sorted(metrics.items()))))

    def log_hyperparams(self, *_, **__):
        pass


class Events(Callback):
    """Notes hooks, and at each checkpoint how many events were before it."""

    def __init__(self, events):
        self.events = events
        self.at_saving = {}

    def on_save_checkpoint(self, trainer, *_):
        loop = trainer.fit_loop
        batches, epochs = loop.epoch_loop.batch_progress.total.ready, loop.epoch_progress.total.processed
        self.at_saving.setdefault((batches, epochs), len(self.events))

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.events.append(("batch", batch_idx, tuple(batch["index"].tolist())))

    def on_validation_end(self, trainer, *_):
        self.events.append(("validated", trainer.current_epoch, trainer.global_step))

    def on_train_epoch_start(self, trainer, *_):
        self.events.append(("epoch", trainer.current_epoch))

    def on_train_epoch_end(self, trainer, *_):
        self.events.append(("epoch ended", trainer.current_epoch, trainer.global_step))

    def on_train_end(self, trainer, *_):
        self.events.append(("end", trainer.current_epoch, trainer.global_step))


def fit(folder, name, resumed_from=None, ours=True):
    torch.manual_seed(3)
    events = []
    watcher = Events(events)
    saving = ModelCheckpoint(dirpath=folder, every_n_train_steps=1, save_top_k=-1, filename="batch{step}")
    each_epoch = ModelCheckpoint(dirpath=folder, save_on_train_epoch_end=True, save_top_k=-1, filename="epoch{step}")
    trainer = Trainer(
        **({"max_epochs": -1, "accumulate_grad_batches": 1} | SETTINGS[name]),
        accelerator="cpu",
        logger=Rows(events),
        log_every_n_steps=1,
        callbacks=[watcher, saving, each_epoch],
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    if ours:
        trainer.fit_loop = FinishingFitLoop(trainer)
    trainer.fit(Slope(name == "manual"), Data(batch_size=2, num_workers=0), ckpt_path=resumed_from)
    ended = folder / f"ended{'' if resumed_from is None else resumed_from.stem}.pt"
    trainer.save_checkpoint(ended)
    return events, watcher.at_saving, torch.load(ended, weights_only=True)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_follows_a_checkpoint_follows_it_again(name, tmp_path):
    events, at_saving, end = fit(tmp_path / "whole", name)
    assert sum(event[0] == "validated" for event in events) >= 1
    saved = {}
    for path in (tmp_path / "whole").glob("*.ckpt"):
        loop = torch.load(path, weights_only=True)["loops"]["fit_loop"]
        saved[loop["epoch_loop.batch_progress"]["total"]["ready"], loop["epoch_progress"]["total"]["processed"]] = path
    assert len(saved) >= 5
    # Saved at the end of the last epoch: nothing is left to train, and Lightning leaves out `on_train_end`.
    over = [place for place in saved if [event[0] for event in events[at_saving[place] :]] == ["end"]]
    assert len(over) == 1
    for place, path in sorted(item for item in saved.items() if item[0] not in over):
        tail, _, resumed = fit(tmp_path / "resumed", name, resumed_from=path)
        assert tail == events[at_saving[place] :], place
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "epoch", "global_step"):
            assert not differences(end[part], resumed[part], part), place
