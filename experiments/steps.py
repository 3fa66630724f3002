"""Commands of `sealmark` as steps of a quickstart: printed, then run in this process."""

import shlex
import sys
from pathlib import Path

from experiments.trainer_cli import SealmarkCLI, run


def run_step(*words: str) -> SealmarkCLI:
    """Print a command as a user would type it and run it."""
    print(f"\n$ sealmark {shlex.join(words)}", flush=True)
    sys.argv[1:] = words
    return run()


def log_dir(cli: SealmarkCLI) -> Path:
    """Return the folder of a finished run."""
    assert cli.trainer.log_dir is not None
    return Path(cli.trainer.log_dir)
