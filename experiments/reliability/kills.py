"""Kills a training again and again and compares its end with that of an unbroken one, bit for bit.

    python -m experiments.reliability.kills --method watermark_segmentation --kills 20

One process imports everything and forks a run for each start, since imports take longer than these runs. Every run has
a process group of its own, which gets SIGKILL as a whole. Runs on Linux, on the CPU.
"""

import argparse
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO

from experiments.cli import answer
from experiments.reliability.kill_recipes import CACHED, CONFIGS, RECIPES, SPECTRA, UNTESTED, recipes_of, words_of

# How often a kill is aimed at what takes little of a life; else at any moment of the training.
AIMED = {"setup": 0.2, "writing": 0.25, "validation": 0.15}
# A life may have no validation in it; after as many steps it is killed all the same.
STEPS_WITHOUT = 4
DAMAGE_SHARE = 0.25
STALLED_SECONDS = 300.0
IMPORTED = "imported.txt"
END_OF_ZIP = 22  # bytes that a zip ends with, some of them zeros anyway
# Of what packages modules are imported where they are needed; they start no threads.
LAZY = (
    *("callbacks", "datamodules", "diffusers", "jsonargparse", "lightning", "lightning_modules", "peft", "timm"),
    *("torch", "torchmetrics", "torchvision", "transformers"),
)


@dataclass
class Life:
    """One start of a run and its end."""

    begun: int | None = None
    """The step that it went on from; None where it was killed before."""
    step: int = 0
    """The last step of which a checkpoint was there."""
    moment: str = "setup"
    """What ran at its end."""
    status: int = 0
    """Exit code, negative for a signal."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """How long each moment took."""

    @property
    def killed(self) -> bool:
        """Whether the kill came before the end."""
        return self.status == -signal.SIGKILL

    @property
    def progressed(self) -> bool:
        """Whether it left a newer checkpoint than it went on from."""
        return self.begun is not None and self.step > self.begun


# Called with a life so far and the seconds since its start: in how many seconds to kill it, None for not yet.
Due = Callable[[Life, float], float | None]


@dataclass
class Tally:
    """What a recipe's kills came to."""

    recipe: str
    steps: int
    kills: int = 0
    laps: int = 0
    without_progress: int = 0
    damaged: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> str:
        """Return a row of the table."""
        told = ", ".join(f"{name} {count}" for name, count in sorted(self.moments.items()))
        same = "yes" if not self.differences else "NO"
        cells = (self.recipe, self.steps, self.kills, self.moments["writing"], self.without_progress, self.damaged)
        return f"| {' | '.join(map(str, cells))} | {told} | {self.laps} | {same} | {self.seconds:.0f} |"


HEADER = (
    "| recipe | steps | kills | during a write | lives without progress | checkpoints damaged | killed in | laps | "
    "identical | seconds |\n|" + "---|" * 10
)


class Runs:
    """Starts runs of a recipe in forks of this process."""

    def __init__(self, recipe: str, steps: int, folder: Path) -> None:
        self.recipe = recipe
        self.steps = steps
        self.folder = folder
        self.log = folder / "log.txt"
        self.setup_seconds = [1.0]
        self.step_seconds = [0.2]
        self.writing_seconds = [0.02]
        self.validation_seconds = [0.1]

    def run_folder(self, version: str) -> Path:
        """Return where a run of that name lies."""
        return next((self.folder / "runs").glob(f"**/{version}"))

    def words(self, command: str, version: str) -> list[str]:
        """Return the words of a run whose folder has that name."""
        return [command, *words_of(self.recipe, self.steps), "--run_name", version]

    def start(self, words: list[str]) -> tuple[int, int]:
        """Fork a run into a process group of its own; return its process and where it tells its moments."""
        reading, writing = os.pipe()
        process = os.fork()
        if process:
            os.close(writing)
            return process, reading
        os.close(reading)
        os.setpgid(0, 0)
        _end_with(lambda: _run(words, self.folder, self.log, writing))
        raise AssertionError("a fork never returns")

    def live(self, words: list[str], due: Due | None = None) -> Life:
        """Run until it ends or is killed.

        Args:
            words: What `sealmark` is told.
            due: Asked whenever something happens, until it says when to kill.
        """
        process, pipe = self.start(words)
        life = Life()
        try:
            with os.fdopen(pipe, "rb", buffering=0) as told:
                self._follow(process, told, life, due)
        finally:
            # The group outlives its leader where workers do.
            _kill_group(process)
            life.status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        self._learn(life)
        if life.status not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{self.recipe}: a run ended with {life.status}: {_tail(self.log)}")
        return life

    def _follow(self, process: int, told: IO[bytes], life: Life, due: Due | None) -> None:
        started = last = time.monotonic()
        kill_at: float | None = None
        rest = b""
        while True:
            if kill_at is None and due is not None:
                wait = due(life, time.monotonic() - started)
                kill_at = None if wait is None else time.monotonic() + wait
            patience = STALLED_SECONDS if kill_at is None else max(0.0, kill_at - time.monotonic())
            ready = select.select([told], [], [], patience)[0]
            if not ready and kill_at is None:
                raise RuntimeError(f"{self.recipe}: nothing happened for {patience:.0f} s: {_tail(self.log)}")
            if not ready:
                _kill_group(process)
                kill_at, due = None, None
                continue
            data = told.read(65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                now = time.monotonic()
                life.seconds.setdefault(life.moment, []).append(now - last)
                last = now
                _take(life, *line.decode().split(" ", 1))

    def _learn(self, life: Life) -> None:
        if life.begun is not None:
            self.setup_seconds += life.seconds["setup"]
        self.writing_seconds += life.seconds.get("writing", [])
        self.validation_seconds += life.seconds.get("validation", [])
        self.step_seconds += life.seconds.get("step", [])


def _take(life: Life, moment: str, detail: str) -> None:
    if moment == "begun":
        life.begun = life.step = int(detail)
    elif moment == "written":
        life.step = int(detail)
    life.moment = moment


def _kill_group(process: int) -> None:
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
        # All of it is gone, or it has not made its group yet.
        _kill(process)


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


def _end_with(work: Callable[[], int]) -> None:
    code = 1
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # The ordinary end would flush and join what belongs to the parent.
        os._exit(code)


def _run(words: list[str], folder: Path, log: Path, pipe: int) -> int:
    """Do what the console script does, in a fork."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    print("$ sealmark", *words, flush=True)
    moments = import_module("experiments.reliability.moments")
    moments.tell_to(pipe)
    moments.watch_writes(import_module("callbacks.checkpoint_files").AtomicCheckpointIO)
    try:
        return int(import_module("experiments.cli").main(words))
    except SystemExit as error:
        return int(error.code or 0)
    finally:
        (folder / IMPORTED).write_text("\n".join(sys.modules))


class Aim:
    """The moment of a life at which it is killed, drawn anew for each."""

    def __init__(self, rng: random.Random, runs: Runs, most_steps: int) -> None:
        self.kind = rng.choices([*AIMED, "step"], [*AIMED.values(), 1 - sum(AIMED.values())])[0]
        self.count = 1 if self.kind == "validation" else rng.randint(1, most_steps)
        self.wait = rng.random() * _typical(getattr(runs, f"{self.kind}_seconds"))

    def __call__(self, life: Life, elapsed: float) -> float | None:
        """Return in how many seconds to kill, None for not yet."""
        if self.kind == "setup":
            return max(0.0, self.wait - elapsed)
        if _count(life, self.kind) >= self.count or _count(life, "step") > max(self.count, STEPS_WITHOUT):
            return self.wait
        return None


def _count(life: Life, moment: str) -> int:
    """Return how often a life has come to a moment."""
    return len(life.seconds.get(moment, ())) + (life.moment == moment)


def _typical(seconds: list[float]) -> float:
    # The slow ones of late, so that what is drawn below it reaches the end.
    return sorted(seconds[-20:])[len(seconds[-20:]) * 3 // 4]


def damage(path: Path, rng: random.Random) -> None:
    """Do to a file what a power cut does: its end is lost, or never reached the disk and reads as zeros."""
    size = path.stat().st_size
    left = rng.randrange(size - END_OF_ZIP)
    os.truncate(path, left)
    if rng.random() < 0.5:
        os.truncate(path, size)


def kill_again_and_again(recipe: str, kills: int, steps: int, folder: Path, seed: int) -> Tally:
    """Kill a recipe's runs that often, let the last one end, and compare with an unbroken one."""
    from experiments.reliability.run_states import compare_runs

    began = time.monotonic()
    rng = random.Random(f"{recipe} {seed}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    runs, tally = Runs(recipe, steps, folder), Tally(recipe, steps)
    _in_fork(lambda: _prepare(recipe, folder))
    runs.live(runs.words("fit", "whole"))
    import_as_told(folder / IMPORTED)
    _test(runs, "whole")
    # A run that comes to its end before all kills were made is compared, and another one begun.
    while tally.laps == 0 or tally.kills < kills:
        name = f"killed{tally.laps}"
        _kill_until_it_ends(runs, name, kills, tally, rng)
        _test(runs, name)
        for suffix in ("",) if recipe in UNTESTED else ("", "-test"):
            tally.differences += compare_runs(runs.run_folder(f"whole{suffix}"), runs.run_folder(f"{name}{suffix}"))
        tally.laps += 1
    tally.seconds = time.monotonic() - began
    return tally


def _kill_until_it_ends(runs: Runs, name: str, kills: int, tally: Tally, rng: random.Random) -> None:
    """Start a run again and again until it has come to its end."""
    from callbacks.checkpoint_files import newest_checkpoint

    words = [*runs.words("fit", name), "--ckpt_path", "last"]
    while True:
        aim = Aim(rng, runs, max(2, 2 * runs.steps // kills)) if tally.kills < kills else None
        life = runs.live(words, aim)
        if not life.killed:
            return
        tally.kills += 1
        tally.moments[life.moment] += 1
        tally.without_progress += not life.progressed
        newest = newest_checkpoint(runs.run_folder(name) / "checkpoints") if life.begun is not None else None
        if newest is not None and rng.random() < DAMAGE_SHARE:
            damage(newest, rng)  # a start that took it would end with an error
            tally.damaged += 1


def _test(runs: Runs, version: str) -> None:
    if runs.recipe in UNTESTED:
        return
    from experiments.reliability.run_states import last_checkpoints

    last = last_checkpoints(runs.run_folder(version))[f"everystep={runs.steps}"]
    runs.live([*runs.words("test", f"{version}-test"), "--ckpt_path", str(last)])


def _in_fork(work: Callable[[], int]) -> None:
    process = os.fork()
    if not process:
        _end_with(work)
    if os.waitpid(process, 0)[1]:
        raise RuntimeError("the preparation failed; its error is above")


def _prepare(recipe: str, folder: Path) -> int:
    """Write the spectra that a head learns from."""
    if SPECTRA in RECIPES[recipe]:
        import yaml

        from experiments.cache_spectra import write_spectra

        (folder / "cached.yaml").write_text(yaml.safe_dump(CACHED))
        write_spectra(folder / "cached.yaml", folder / SPECTRA, train_pictures=12)
    return 0


def import_everything(names: list[str]) -> None:
    """Import what the runs will, so that each of them starts in a moment; nothing may start a thread here."""
    import yaml

    for module in ("experiments.trainer_cli", "experiments.early_checks", "experiments.reliability.moments"):
        import_module(module)
    for name in names:
        content = yaml.safe_load((CONFIGS / RECIPES[name][0]).read_text())
        trainer = content["trainer"]
        for part in (content["model"], content["data"], *trainer["callbacks"], *trainer["logger"]):
            import_module(part["class_path"].rpartition(".")[0])


def import_as_told(names: Path) -> None:
    """Import what a run has imported on its way, which takes longer than these runs."""
    for name in names.read_text().splitlines():
        if name not in sys.modules and name.split(".")[0] in LAZY:
            import_module(name)


def main() -> int:
    """Kill the named recipes' runs and print a table; the status is 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="all", help="a method, one of its recipes, or all")
    parser.add_argument("--kills", type=int, default=20, help="of each recipe")
    parser.add_argument("--steps", type=int, default=40, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/kills"), help="where the runs lie; emptied first")
    asked = parser.parse_args()
    # One thread: what threads add up in another order would not be bit-identical, and forks have none.
    os.environ["OMP_NUM_THREADS"] = "1"
    names = list(recipes_of(asked.method))
    import_everything(names)
    print(HEADER, flush=True)
    found = 0
    for name in names:
        folder = (asked.folder / name).resolve()
        tally = kill_again_and_again(name, asked.kills, asked.steps, folder, asked.seed)
        print(tally.row(), flush=True)
        print(*(f"  {line}" for line in tally.differences[:20]), sep="\n", file=sys.stderr)
        found += len(tally.differences)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(answer(main))
