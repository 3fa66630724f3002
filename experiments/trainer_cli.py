"""The LightningCLI behind fit, validate, test and predict."""

import gc
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from callbacks.prediction_writers import PredictionWriter
from callbacks.progress import progress_bar
from callbacks.run_safety import GracefulStop, SkippedFiles
from datamodules.base import ProvenanceDataModule
from experiments.mistakes import EXPLAINED, explain, refuse_url
from experiments.one_line import OneLineParser
from experiments.tracking import track_offline_without_account
from lightning_modules.base import ProvenanceModule


class TrainerParser(OneLineParser, LightningArgumentParser):
    """The parser of LightningCLI, with our way to tell a mistake."""


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config into the run's folder and hands it to the loggers that keep one."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send the config to every logger but the first, whose folder holds it as config.yaml."""
        for logger in trainer.loggers[1:]:
            logger.log_hyperparams({"config": self.config.as_dict(), "stage": stage})


class SealmarkCLI(LightningCLI):
    """Any of our modules with any of our datamodules, by `class_path`; the YAML and the flags are the truth."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except EXPLAINED as error:
            raise explain(error, self._checkpoint()) from error
        finally:
            gc.unfreeze()

    def _checkpoint(self) -> str | Path | None:
        """The checkpoint that the trainer took, which the user may have called "last", or else the named one."""
        taken = self.trainer.ckpt_path if hasattr(self, "trainer") else None
        return taken or (self.config[self.subcommand].get("ckpt_path") if hasattr(self, "subcommand") else None)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add where predictions go; nothing is linked, so no flag is overridden behind the user's back."""
        parser.add_lightning_class_args(PredictionWriter, "predictions")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Leave Lightning's table out of tests: ours has intervals, and a hundred lines twice hide what was found."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "test":
            parser.set_defaults(verbose=False)
        return parser

    def before_instantiate_classes(self) -> None:
        """Unpickle no checkpoint, whatever the config says, and never wait for an account of a tracker."""
        config = self.config[self.subcommand]
        if "weights_only" in config:
            # Left as None, it means False for some paths.
            config.weights_only = True
        refuse_url(config.get("ckpt_path"))
        track_offline_without_account(config.trainer.logger)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Leave our progress bar out where the user wants none or brings one; Lightning refuses both."""
        asked = self.config_init[self.subcommand].trainer
        brought = asked.callbacks if isinstance(asked.callbacks, list) else [asked.callbacks]
        if asked.enable_progress_bar is False or any(isinstance(callback, ProgressBar) for callback in brought):
            ours = self.trainer_defaults["callbacks"]
            self.trainer_defaults["callbacks"] = [each for each in ours if not isinstance(each, ProgressBar)]
        return super().instantiate_trainer(**kwargs)

    def instantiate_classes(self) -> None:
        """Keep what is imported and built by now from the garbage collector.

        It lives as long as the run, and a round over it holds all threads up for a third of a second.
        """
        super().instantiate_classes()
        gc.freeze()

    def before_fit(self) -> None:
        """Keep a network on the CPU to the cores that its workers leave: sharing them costs more than it brings."""
        self.threads = torch.get_num_threads()
        if isinstance(self.trainer.accelerator, CPUAccelerator) and "OMP_NUM_THREADS" not in os.environ:
            self.datamodule.trainer = self.trainer
            torch.set_num_threads(self.datamodule.free_cores())

    def after_fit(self) -> None:
        """Give the network all its threads back: what follows in this process is not training."""
        torch.set_num_threads(self.threads)

    def before_predict(self) -> None:
        """Use the weights that come with the repository where the user named none, and say so."""
        named = self.config[self.subcommand].ckpt_path is not None or self.model.hparams.get("weights")
        if not named and next(self.model.parameters(), None) is not None:
            path = self.model.load_shipped_weights()
            print(f"no --ckpt_path or --model.weights named: using the shipped weights {path}", file=sys.stderr)

    before_validate = before_test = before_predict

    def _parse_ckpt_path(self) -> None:
        """Keep what the user wrote.

        Lightning would let hyper-parameters stored in a checkpoint override the config and the flags, silently
        (its issues 20310, 20801, 21116), and refuse checkpoints without them. A test holds that this hook exists.
        """


def run() -> SealmarkCLI:
    """Parse `sys.argv` and run one of fit, validate, test, predict."""
    trainer_defaults: dict[str, Any] = {
        "callbacks": [progress_bar(), GracefulStop(), SkippedFiles()],
        "default_root_dir": "runs",
    }
    # An advertisement on every run.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda told: "Tip: " not in told.getMessage())
    # https://github.com/Lightning-AI/pytorch-lightning/issues/21622: pytree's own deprecation inside Lightning
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
    return SealmarkCLI(
        ProvenanceModule,
        ProvenanceDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=SaveConfig,
        seed_everything_default=0,
        trainer_defaults=trainer_defaults,
        parser_class=TrainerParser,
        parser_kwargs={"parser_mode": "omegaconf+", "prog": "sealmark"},
    )
