"""Two processes fine-tune the tiny diffusion model, whole and spread, and go on from each other's checkpoints.

python sharded_run.py FOLDER
"""

import importlib.util
import sys
from pathlib import Path

import torch
from lightning import Trainer
from torch.optim import SGD

from callbacks.bad_numbers import BadNumbers
from callbacks.diffusion_folder import DiffusionFolder
from experiments.sharded_training import ShardedStrategy
from lightning_modules.seal2real.joint import JointFinetuneModule

_SPEC = importlib.util.spec_from_file_location("two_ranks", Path(__file__).parents[1] / "callbacks" / "two_ranks.py")
two_ranks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(two_ranks)


class Finetune(JointFinetuneModule):
    """With an optimiser that does not turn the rounding of a vanishing gradient into a full step."""

    def configure_optimizers(self):
        unet = {"params": list(self.backbone.unet.parameters()), "lr": 0.02}
        return SGD([{"params": list(self.prompt.parameters()), "lr": 0.5}, unet], momentum=0.9)


class Crops(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        draws = torch.Generator().manual_seed(index)
        return {"real": torch.rand(3, 32, 32, generator=draws), "index": index}


def train(folder, strategy, steps, name, go_on=None, callbacks=()):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    place = {"accelerator": "cpu", "devices": 2, "logger": False, "default_root_dir": folder}
    trainer = Trainer(strategy=strategy, max_steps=steps, callbacks=[BadNumbers(), *callbacks], **place, **quiet)
    torch.manual_seed(0)
    module = Finetune("tiny", repeats=1)
    trainer.fit(module, torch.utils.data.DataLoader(Crops(), batch_size=2), ckpt_path=go_on)
    trainer.save_checkpoint(f"{folder}/{name}.ckpt")
    return module


def run(folder):
    train(folder, "ddp", 2, "whole2")
    spread = train(folder, ShardedStrategy(), 2, "spread2", callbacks=[DiffusionFolder(f"{folder}/diffusion")])
    parameters = list(spread.backbone.unet.parameters())
    held = sum(parameter.to_local().numel() for parameter in parameters)
    assert held < 0.51 * sum(parameter.numel() for parameter in parameters), "a half each, but for odd sizes"
    train(folder, "ddp", 4, "whole4", f"{folder}/whole2.ckpt")
    train(folder, "ddp", 4, "whole_from_spread", f"{folder}/spread2.ckpt")
    train(folder, ShardedStrategy(), 4, "spread_from_whole", f"{folder}/whole2.ckpt")
    train(folder, ShardedStrategy(), 4, "spread_from_spread", f"{folder}/spread2.ckpt")


if __name__ == "__main__":
    two_ranks.in_two_processes(run, sys.argv[1])
