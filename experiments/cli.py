"""The command `sealmark`: what it answers without torch, and to whom it hands the rest."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
TOOLS = {
    "export": "experiments.export:export",
    "prepare": "experiments.prepare:PREPARATIONS",
    "index": "experiments.index:COMMANDS",
    "compare": "experiments.compare:compare",
}
PREDICT_CONFIG = Path(__file__).parents[1] / "configs" / "watermark_segmentation" / "predict.yaml"
USAGE = """usage: sealmark COMMAND [--config FILE ...] [--key value ...]

Train, evaluate, run and export methods of image provenance.

  fit        train:                  sealmark fit --config configs/watermark_segmentation/quickstart.yaml
  validate   score the validation split of a run
  test       score its test split:   sealmark test --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt
  predict    run on your images:     sealmark predict --data.paths FOLDER
  export     write one self-contained file (torchscript, onnx, pt2) and check it
  prepare    prepare data: manifests, drawn images, seals, SA-1B shards, test sets, cached spectra
  index      find copies: build, add to, search or calibrate an index of descriptors
  compare    two test runs on the same data: differences with paired intervals

  -h, --help   this text; `sealmark COMMAND --help` for a command's own
  --version    the version

Later --config files and flags win over earlier ones, key by key; overlays for machines are in configs/env.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; what a user can cause is answered in one line."""
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"sealmark {version('sealmark')}")
        return 0
    command = _find_command(words[0])
    if command is None:
        return _fail(f"unknown command '{words[0]}': use one of {', '.join((*TRAINER_COMMANDS, *TOOLS))}")
    return answer(partial(command, words))


def answer(program: Callable[[], int | None]) -> int:
    """Run a program and return its exit code; what a user can cause is answered in one line."""
    try:
        return program() or 0
    except (ValueError, OSError) as error:
        if os.environ.get("SEALMARK_DEBUG"):
            raise
        return _fail(f"{_one_line(error)}  [SEALMARK_DEBUG=1 shows the traceback]")
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C", code=130)


def _find_command(name: str) -> Callable[[list[str]], None] | None:
    if name in TRAINER_COMMANDS:
        return _run_trainer
    return _run_tool if name in TOOLS else None


def _run_trainer(words: list[str]) -> None:
    if words[0] == "predict" and not any(word.split("=")[0] in ("--config", "-c", "--model") for word in words):
        if not {"-h", "--help"} & set(words):
            print(f"no --config named: using {os.path.relpath(PREDICT_CONFIG)}", file=sys.stderr)
        words = [words[0], "--config", str(PREDICT_CONFIG), *words[1:]]
    import_module("experiments.early_checks").check_diffusion_model(words)
    # LightningCLI and the processes that DDP starts both read the command line from here.
    sys.argv[1:] = words
    import_module("experiments.trainer_cli").run()


def _run_tool(words: list[str]) -> None:
    from jsonargparse import auto_cli

    from experiments.one_line import OneLineParser

    module, attribute = TOOLS[words[0]].split(":")
    auto_cli(
        getattr(import_module(module), attribute),
        args=words[1:],
        prog=f"sealmark {words[0]}",
        as_positional=False,
        parser_class=OneLineParser,
    )


def _one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename and error.errno:
        text = f"{error.filename}: a file is there, or on the way to it, where a folder is needed; name another place"
    if "against any of the Union" in text:  # jsonargparse's, around what a class said of its arguments
        text = import_module("experiments.one_line").condense(text)
    # Text of a file must not reach the terminal as control characters.
    return "".join(mark if mark.isprintable() else "?" for mark in " ".join(text.split())) or type(error).__name__


def _fail(message: str, code: int = 2) -> int:
    print(f"sealmark: error: {message}", file=sys.stderr)
    return code
