"""The LightningCLI behind fit, validate, test and predict."""

import gc
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins import CheckpointIO

from callbacks.bad_numbers import BadNumbers
from callbacks.checkpoint_files import AtomicCheckpointIO, WrittenBest
from callbacks.prediction_files import FolderLock
from callbacks.prediction_writers import PredictionWriter
from callbacks.process_watch import ProcessWatch
from callbacks.progress import progress_bar
from callbacks.run_safety import GracefulStop, SkippedFiles, heed_early_signal
from callbacks.start_report import StartReport
from datamodules.base import ProvenanceDataModule
from experiments.mistakes import EXPLAINED, explain, refuse_remote_folder, refuse_url
from experiments.one_line import OneLineParser
from experiments.resumed_loops import FinishingFitLoop
from experiments.resumption import find_checkpoint, refuse_last, take_folder
from experiments.tracking import name_run, track_offline_without_account, without_run_name
from lightning_modules.base import ProvenanceModule


class TrainerParser(OneLineParser, LightningArgumentParser):
    """The parser of LightningCLI, with our way to tell a mistake."""


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config into the run's folder and hands it to the loggers that keep one."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        super().__init__(parser, without_run_name(config), **kwargs)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send the config to every logger but the first, whose folder holds it as config.yaml."""
        for logger in trainer.loggers[1:]:
            logger.log_hyperparams({"config": self.config.as_dict(), "stage": stage})


class SealmarkCLI(LightningCLI):
    """Any of our modules with any of our datamodules, by `class_path`; the YAML and the flags are the truth."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.lock = FolderLock()
        try:
            super().__init__(*args, **kwargs)
        except EXPLAINED as error:
            raise explain(error, self._checkpoint()) from error
        finally:
            gc.unfreeze()
            self.lock.release()

    def _checkpoint(self) -> str | Path | None:
        """The checkpoint that the trainer took, which the user may have called "last", or else the named one."""
        taken = self.trainer.ckpt_path if hasattr(self, "trainer") else None
        return taken or (self.config[self.subcommand].get("ckpt_path") if hasattr(self, "subcommand") else None)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add settings of callbacks that every run has; nothing is linked, so no flag is overridden unseen."""
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(BadNumbers, "bad_numbers")
        parser.add_lightning_class_args(ProcessWatch, "process_watch")
        told = "a name for the run's folder, which a start with the same name takes up again"
        parser.add_argument("--run_name", type=str | None, default=None, help=told)

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
        refuse_remote_folder("trainer.default_root_dir", config.trainer.default_root_dir)
        refuse_remote_folder("predictions.output_dir", config.predictions.output_dir)
        name_run(config)
        track_offline_without_account(config.trainer.logger)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Write checkpoints our way; leave our progress bar out where the user wants none or brings one.

        Lightning refuses two of a kind.
        """
        asked = self.config_init[self.subcommand].trainer
        brought = asked.callbacks if isinstance(asked.callbacks, list) else [asked.callbacks]
        if asked.enable_progress_bar is False or any(isinstance(callback, ProgressBar) for callback in brought):
            ours = self.trainer_defaults["callbacks"]
            self.trainer_defaults["callbacks"] = [each for each in ours if not isinstance(each, ProgressBar)]
        plugins = asked.plugins if isinstance(asked.plugins, list) else [asked.plugins] if asked.plugins else []
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            files = AtomicCheckpointIO()
            plugins = [*plugins, files]
            self.trainer_defaults["callbacks"] = [*self.trainer_defaults["callbacks"], WrittenBest(files)]
        trainer = super().instantiate_trainer(plugins=plugins, **kwargs)
        # First to begin and, as the others meet in a collective at their end, first to wait for all of them.
        trainer.callbacks.sort(key=lambda callback: not isinstance(callback, ProcessWatch))  # type: ignore[attr-defined]
        trainer.fit_loop = FinishingFitLoop(trainer)
        return trainer

    def instantiate_classes(self) -> None:
        """Keep what is imported and built by now from the garbage collector.

        It lives as long as the run, and a round over it holds all threads up for a third of a second.
        """
        super().instantiate_classes()
        gc.freeze()

    def before_fit(self) -> None:
        """Take the run up where it was, and keep a network on the CPU to the cores that its workers leave.

        Sharing them costs more than it brings.
        """
        config = self.config_init[self.subcommand]
        config.ckpt_path = find_checkpoint(self.trainer, config.ckpt_path)
        self._take_folder(config.ckpt_path)
        self.threads = torch.get_num_threads()
        if isinstance(self.trainer.accelerator, CPUAccelerator) and "OMP_NUM_THREADS" not in os.environ:
            self.datamodule.trainer = self.trainer
            torch.set_num_threads(self.datamodule.free_cores())

    def after_fit(self) -> None:
        """Give the network all its threads back, and end with an error where the last checkpoint could not be written.

        What follows in this process is not training.
        """
        torch.set_num_threads(self.threads)
        failure = getattr(self.trainer.strategy.checkpoint_io, "failure", "")
        if failure:
            raise OSError(failure)

    def before_predict(self) -> None:
        """Use the weights that come with the repository where the user named none, and say so."""
        refuse_last(self.config[self.subcommand].ckpt_path)
        self._take_folder(None)
        named = self.config[self.subcommand].ckpt_path is not None or self.model.hparams.get("weights")
        if not named and next(self.model.parameters(), None) is not None:
            path = self.model.load_shipped_weights()
            print(f"no --ckpt_path or --model.weights named: using the shipped weights {path}", file=sys.stderr)

    before_validate = before_test = before_predict

    def _take_folder(self, checkpoint: str | None) -> None:
        # As it is saved, so that it can be compared.
        config = yaml.safe_load(self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False))
        take_folder(self.trainer, config, checkpoint, self.lock)

    def _parse_ckpt_path(self) -> None:
        """Keep what the user wrote.

        Lightning would let hyper-parameters stored in a checkpoint override the config and the flags, silently
        (its issues 20310, 20801, 21116), and refuse checkpoints without them. A test holds that this hook exists.
        """


def run() -> SealmarkCLI:
    """Parse `sys.argv` and run one of fit, validate, test, predict."""
    trainer_defaults: dict[str, Any] = {
        "callbacks": [progress_bar(), StartReport(), GracefulStop(), SkippedFiles()],
        "default_root_dir": "runs",
    }
    heed_early_signal()
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
