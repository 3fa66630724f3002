"""The LightningCLI behind fit, validate, test and predict."""

import logging
import os
import pickle
import sys
from itertools import pairwise
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from callbacks.prediction_writers import PredictionWriter
from callbacks.progress import progress_bar
from callbacks.run_safety import GracefulStop, SkippedFiles
from datamodules.base import ProvenanceDataModule
from lightning_modules.base import ProvenanceModule
from lightning_modules.weights import read_weights

# How lines begin that jsonargparse adds for every member of a Union beside the one that was meant.
TRIED_TYPES = (
    "Does not validate against any of the Union",
    "Subtypes: ",
    "Errors",
    "Not a valid subclass",
    "Subclass types expect one of",
    "a class path (str)",
    "a dict with",
    "Expected a <class 'NoneType'>",
    "Given value",
)


class OneLineParser(LightningArgumentParser):
    """Answers a mistake with what is wrong and where, instead of forty lines of usage."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """Print the mistake in one line and exit with 2."""
        if os.environ.get("SEALMARK_DEBUG") and ex is not None:
            raise ex
        print(f"sealmark: error: {condense(message)}", file=sys.stderr)
        raise SystemExit(2)


def condense(message: str) -> str:
    """Put a message of the parser into one line, without what it says of the types that were also tried."""
    lines = [line.strip(" -").rstrip(":") for line in message.splitlines()]
    told = [line for line in lines if line and not line.startswith(TRIED_TYPES)]
    return ": ".join(told or lines)


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config into the run's folder and hands it to the loggers that keep one."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send the config to every logger but the first, whose folder holds it as config.yaml."""
        for logger in trainer.loggers[1:]:
            logger.log_hyperparams({"config": self.config.as_dict(), "stage": stage})


class SealmarkCLI(LightningCLI):
    """Any of our modules with any of our datamodules, by `class_path`; the YAML and the flags are the truth."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add where predictions go; nothing is linked, so no flag is overridden behind the user's back."""
        parser.add_lightning_class_args(PredictionWriter, "predictions")

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
        if self.config[self.subcommand].ckpt_path is None and not self.model.hparams.get("weights"):
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
    try:
        return _launch(trainer_defaults)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise _explained(error) from error


def _launch(trainer_defaults: dict[str, Any]) -> SealmarkCLI:
    return SealmarkCLI(
        ProvenanceModule,
        ProvenanceDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=SaveConfig,
        seed_everything_default=0,
        trainer_defaults=trainer_defaults,
        parser_class=OneLineParser,
        parser_kwargs={"allow_abbrev": False, "parser_mode": "omegaconf+", "prog": "sealmark"},
    )


def _explained(error: Exception) -> Exception:
    """Say what a user can do about a checkpoint or folder that cannot be used; other errors stay what they are."""
    if "SaveConfigCallback expected" in str(error):
        return ValueError("another run's config.yaml lies in the run's folder: give the run a logger or its own folder")
    words = sys.argv[1:]
    path = next((value for flag, value in pairwise(words) if flag == "--ckpt_path"), "")
    path = next((word.split("=", 1)[1] for word in words if word.startswith("--ckpt_path=")), path)
    if isinstance(error, pickle.UnpicklingError):
        read_weights(path)  # names the code that the file would have run
        return ValueError(f"checkpoint '{path}' cannot be read: {str(error).splitlines()[0]}")
    if "loading state_dict" in str(error):
        reasons = [line.strip() for line in str(error).splitlines()[1:]]
        return ValueError(
            f"checkpoint '{path}' does not fit the model of this config ({len(reasons)} keys, first: {reasons[0]}): "
            f"use the config.yaml of the run that made it"
        )
    return error
