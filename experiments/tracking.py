"""Weights & Biases without an account: files on disk instead of a prompt that a batch job waits on forever."""

import netrc
import os
import sys
from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Each of these says that the user has decided or can be known.
DECIDED = ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


def track_offline_without_account(loggers: Any) -> None:
    """Set WANDB_MODE=offline, and say so, where a WandbLogger would ask for an account.

    Args:
        loggers: `trainer.logger` of the parsed config.
    """
    if not any(_goes_online(logger) for logger in (loggers if isinstance(loggers, list) else [loggers])):
        return
    if any(os.environ.get(name) for name in DECIDED) or _has_account():
        return
    os.environ["WANDB_MODE"] = "offline"
    print("no W&B account found: tracking offline; send the run later with `wandb sync`", file=sys.stderr)


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
