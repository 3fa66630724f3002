"""Trackers: Weights & Biases without an account or prompt, and runs that go on in a tracker after a restart."""

import netrc
import os
import secrets
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning import Trainer
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.prediction_files import write_whole

WANDB_ID = "wandb_run_id.txt"  # in the run's folder
# Each of these says that the user has decided or can be known.
DECIDED = ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


def track_offline_without_account(loggers: Any) -> None:
    """Set WANDB_MODE=offline, and say so, where a WandbLogger would ask for an account.

    Args:
        loggers: `trainer.logger` of the parsed config.
    """
    if not any(_goes_online(logger) for logger in _listed(loggers)):
        return
    if any(os.environ.get(name) for name in DECIDED) or _has_account():
        return
    os.environ["WANDB_MODE"] = "offline"
    print("no W&B account found: tracking offline; send the run later with `wandb sync`", file=sys.stderr)


def name_run(config: Any) -> None:
    """Give the run's folder the name that --run_name says, and let trackers go on where a run of that name stopped.

    W&B knows a run by an id, which is kept in the folder; TensorBoard by its own folder, which gets the name. A user's
    own id or version is left alone.

    Args:
        config: The parsed config of a command.
    """
    if config.get("run_name") is not None:
        found = list(_of_kind(config, "RunFolderLogger"))
        if not found:
            raise ValueError(
                f"--run_name {config.run_name} needs callbacks.run_folder.RunFolderLogger in trainer.logger"
            )
        for logger in found:
            logger.init_args.version = config.run_name
    folder = _named_folder(config)
    if folder is None:
        return
    for logger in _of_kind(config, "WandbLogger"):
        # Rank 0 alone opens a run.
        if not _get_rank() and logger.init_args.get("id") is None and logger.init_args.get("version") is None:
            logger.init_args.id = _kept_id(folder)
    for logger in _of_kind(config, "TensorBoardLogger"):
        if logger.init_args.get("version") is None:
            logger.init_args.version = folder.name


def without_run_name(config: Any) -> Any:
    """Return a copy of the config that takes a fresh folder: a name is of one run, and its config begins others."""
    folder, config = _named_folder(config), config.clone()
    config.run_name = None
    for logger in _of_kind(config, "RunFolderLogger"):
        logger.init_args.version = None
    if folder is not None:
        for logger in _of_kind(config, "WandbLogger"):
            if not _get_rank() and logger.init_args.get("id") == _kept_id(folder):
                logger.init_args.id = None
        for logger in _of_kind(config, "TensorBoardLogger"):
            if logger.init_args.get("version") == folder.name:
                logger.init_args.version = None
    return config


def purge_after(trainer: Trainer, step: int) -> None:
    """Let TensorBoard leave out what an earlier start logged after a step: the run logs it again.

    W&B cannot take back; there such steps are drawn twice.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # It hands these to its writer, which is made at first use.
            logger._kwargs.setdefault("purge_step", step + 1)


def _named_folder(config: Any) -> Path | None:
    for logger in _of_kind(config, "RunFolderLogger"):
        if logger.init_args.get("version") is not None:
            return Path(logger.init_args.save_dir, logger.init_args.name, logger.init_args.version)
    return None


def _kept_id(folder: Path) -> str:
    """Return the id of the folder's run in W&B; made at first use and kept."""
    path = folder / WANDB_ID
    if not path.exists() or not path.stat().st_size:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, secrets.token_hex(4).encode())
    return path.read_text(encoding="utf-8").strip()


def _of_kind(config: Any, name: str) -> Iterator[Any]:
    loggers = _listed(config.trainer.logger)
    return (logger for logger in loggers if getattr(logger, "class_path", "").split(".")[-1] == name)


def _listed(loggers: Any) -> list[Any]:
    return loggers if isinstance(loggers, list) else [loggers]


def _goes_online(logger: Any) -> bool:
    options = getattr(logger, "init_args", None)
    return getattr(logger, "class_path", "").endswith("WandbLogger") and not getattr(options, "offline", False)


def _has_account() -> bool:
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    settings = ConfigParser(default_section="default")
    try:
        settings.read([folder / "settings", Path("wandb", "settings")])
    except (ConfigError, OSError):
        return False
    stored = settings.defaults()
    url = os.environ.get("WANDB_BASE_URL") or stored.get("base_url") or "https://api.wandb.ai"
    return bool(stored.get("mode") or stored.get("api_key") or _is_known_to_netrc(urlsplit(url).netloc))


def _is_known_to_netrc(host: str) -> bool:
    try:
        return netrc.netrc(Path(os.environ.get("NETRC") or "~/.netrc").expanduser()).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError):
        return False
