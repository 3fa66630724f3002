"""Feeds hostile inputs to a reader in forked processes and tells what went wrong, input by input.

A reader may return, or refuse in one printable line of an allowed error. All else is a failure: other exceptions, a
crash, a hang, memory above the bound, something written, renamed, removed, started or connected to outside its folder,
files left open, processes left behind.
"""

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tests.hostile.guard import Guard

Target = Callable[[Any, Path], object]

MOST_FAILURES = 20  # a reader that fails at every input is known to fail by then
MOST_CHARACTERS = 2000  # a line that is longer quotes the hostile file
MORE_FILES = 8  # left open after a whole life; libraries open a few of their own once
PATIENCE = 3  # how many times as long an input gets that was too slow: the machine may have been busy


@dataclass(frozen=True)
class Failure:
    """What went wrong at one input."""

    case: object
    kind: str
    told: str


@dataclass
class Report:
    """What a run found; memory is above what the process had before the input."""

    count: int = 0
    taken: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    peak_megabytes: float = 0.0
    peak_case: object = None
    slowest_seconds: float = 0.0
    slowest_case: object = None
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.count} inputs in {self.seconds:.0f} s ({self.count / max(self.seconds, 1e-9):.0f}/s): "
            f"{self.taken} taken, {self.reasons.total()} refused for {len(self.reasons)} reasons, "
            f"{len(self.failures)} failures; "
            f"most memory {self.peak_megabytes:.0f} MB at {_named(self.peak_case)}, "
            f"longest {self.slowest_seconds:.2f} s at {_named(self.slowest_case)}"
        )


@dataclass(frozen=True)
class Bounds:
    """What one input may take, and what refusing it may look like."""

    seconds: float
    megabytes: float
    allowed: tuple[type[BaseException], ...]
    raw: tuple[type[BaseException], ...]


def run_hostile(
    target: Target,
    inputs: Sequence[Any],
    *,
    seconds: float,
    megabytes: float,
    sandbox: Path,
    make: Target | None = None,
    allowed: tuple[type[BaseException], ...] = (ValueError, OSError),
    raw: tuple[type[BaseException], ...] = (UnicodeError, json.JSONDecodeError),
    life: int = 2000,
) -> Report:
    """Call `target(made, folder)` for every input and fail with the list of what went wrong.

    Args:
        target: The reader; `folder` is the only place where it may write, empty at each input.
        inputs: What names an input, such as a seed; a failure is told by it.
        seconds: How long an input may take; a slower one gets a second try of three times as long.
        megabytes: How far the process may grow for an input, and over a life.
        sandbox: An existing folder for all that the run makes.
        make: `make(case, folder)` gives the target its first argument. Its own mistakes are failures, its memory and
            what it writes do not count.
        allowed: Errors by which a reader refuses.
        raw: Kinds of these that tell a user nothing and are failures.
        life: Inputs of a process.
    """
    report, bounds = Report(), Bounds(seconds, megabytes, allowed, raw)
    started, first, suspect = time.monotonic(), 0, -1
    _give_back()  # garbage and the allocator's free memory, which processes inherit, would hide what an input takes
    while first < len(inputs) and len(report.failures) < MOST_FAILURES:
        last = min(first + life, len(inputs))
        patience = seconds * (PATIENCE if suspect == first else 1)
        with _place(sandbox) as (surroundings, folder):
            before = _snapshot(surroundings, folder)
            process, stream = _fork(target, make, inputs, range(first, last), bounds, folder)
            done, hung = _follow(stream, inputs[first:last], report, patience, seconds)
            reached = first + done
            fault = _end(process, surroundings, hung)
            if reached < last and fault is not None and fault[0] == "hang" and suspect != reached:
                suspect, fault = reached, None  # once more, with patience
            elif reached < last:
                kind, told = fault or ("crash", "the process ended early")
                report.failures.append(Failure(inputs[reached], kind, told))
                report.count += 1
                reached += 1
            elif fault is not None:
                report.failures.append(Failure(f"{inputs[first]!r} to {inputs[last - 1]!r}", *fault))
            changed = sorted(set(before.items()) ^ set(_snapshot(surroundings, folder).items()))
            if changed:
                told = f"{changed[0][0]} and {len(changed) - 1} more entries changed"
                report.failures.append(Failure(f"{inputs[first]!r} to {inputs[reached - 1]!r}", "outside", told))
        first = reached
    report.seconds = time.monotonic() - started
    print(report)
    if report.failures:
        lines = [f"{each.kind} at {_named(each.case)}: {each.told}" for each in report.failures]
        raise AssertionError("\n".join([str(report), *lines]))
    return report


@contextlib.contextmanager
def _place(sandbox: Path) -> Iterator[tuple[Path, Path]]:
    """A folder among others, with files around it that nobody may touch."""
    surroundings = Path(tempfile.mkdtemp(dir=sandbox))
    folder = surroundings / "home" / "run" / "inside"
    folder.mkdir(parents=True)
    (surroundings / "home" / "run" / "tmp").mkdir()
    for around in (surroundings, surroundings / "home", surroundings / "home" / "run"):
        for name in ("precious.txt", "config.yaml", "evil"):
            (around / name).write_text("not yours")
    try:
        yield surroundings, folder
    finally:
        shutil.rmtree(surroundings, ignore_errors=True)


def _snapshot(surroundings: Path, folder: Path) -> dict[str, tuple[int, int, int]]:
    """Everything around the folder but the folder and the process's log and temporary files."""
    free = {str(folder), str(folder.parent / "tmp")}
    found = {}
    for place, folders, files in os.walk(surroundings):
        folders[:] = [name for name in folders if os.path.join(place, name) not in free]
        for name in [*folders, *files]:
            path = os.path.join(place, name)
            status = os.lstat(path)
            # The time stamp of a folder changes with the free ones in it; its other entries are listed.
            stamp = 0 if os.path.isdir(path) else status.st_mtime_ns
            if name != "stderr.log":
                found[path] = (status.st_mode, status.st_size if stamp else 0, stamp)
    return found


def _fork(
    target: Target, make: Target | None, inputs: Sequence[Any], positions: range, bounds: Bounds, folder: Path
) -> tuple[int, int]:
    """Start a process for some inputs; return its id and where it tells how each of them went."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    status = 1
    try:
        os.close(reading)
        _live(target, make, inputs, positions, bounds, folder, writing)
        status = 0
    except BaseException:
        faulthandler.dump_traceback(file=2)
    finally:
        os._exit(status)  # the ordinary end would run what the parent has registered


def _live(
    target: Target,
    make: Target | None,
    inputs: Sequence[Any],
    positions: range,
    bounds: Bounds,
    folder: Path,
    writing: int,
) -> None:
    _move_in(folder)
    gc.freeze()
    guard = Guard([folder, folder.parent / "tmp"])
    meter = _Meter()
    resource.setrlimit(resource.RLIMIT_DATA, (meter.data_limit(bounds.megabytes),) * 2)
    at_first, files_at_first = meter.resident(), _open_files()
    for position in positions:
        _empty(folder)
        outcome = _judge(target, make, inputs[position], folder, bounds, guard, meter)
        os.write(writing, json.dumps(outcome).encode() + b"\n")
    _give_back()
    grown = (meter.resident() - at_first) / 1e6
    if grown > bounds.megabytes:
        _quit(f"{grown:.0f} MB more are in use than before")
    if _open_files() > files_at_first + MORE_FILES:
        _quit(f"{_open_files() - files_at_first} files were left open")


def _move_in(folder: Path) -> None:
    """Make the process one that may be killed, with nothing of the user's in reach."""
    os.setsid()
    for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    log = os.open(folder.parents[2] / "stderr.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    faulthandler.enable(file=log)
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    spare = str(folder.parent / "tmp")
    for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME", "SEALMARK_CACHE"):
        os.environ[name] = spare
    tempfile.tempdir = None
    os.chdir(folder.parent)


def _judge(
    target: Target, make: Target | None, case: Any, folder: Path, bounds: Bounds, guard: Guard, meter: "_Meter"
) -> dict[str, Any]:
    """Run one input and say how it went."""
    try:
        made = case if make is None else make(case, folder)
    except BaseException as error:
        return {"kind": "generator", "told": _tell(error), "seconds": 0, "megabytes": 0}
    guard.faults.clear()
    meter.reset()
    started = time.monotonic()
    kind, told = "taken", ""
    try:
        with guard:
            target(made, folder)
    except BaseException as error:
        kind, told = _verdict(error, bounds)
    seconds, megabytes = time.monotonic() - started, meter.grown()
    if guard.faults:
        kind, told = "outside", "; ".join(guard.faults[:3])
    elif megabytes > bounds.megabytes:
        kind, told = "memory", f"{megabytes:.0f} MB after: {told}"
    return {"kind": kind, "told": told, "seconds": seconds, "megabytes": megabytes}


def _verdict(error: BaseException, bounds: Bounds) -> tuple[str, str]:
    """Tell a refusal from a failure."""
    chain, link = [], error
    while link is not None and len(chain) < 20:
        chain.append(link)
        link = link.__cause__ or link.__context__
    text = str(error)
    if any(isinstance(each, MemoryError) for each in chain):
        return "memory", f"asked for more than the bound: {_tell(error)}"
    if not isinstance(error, bounds.allowed) or isinstance(error, bounds.raw):
        return "exception", _tell(error)
    if not text.strip() or not text.isprintable() or len(text) > MOST_CHARACTERS:
        return "unclear", f"not one printable line of {MOST_CHARACTERS} characters: {_tell(error)}"
    return "refused", text


def _tell(error: BaseException) -> str:
    """Return the error and the innermost lines that it came from."""
    places, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return f"{type(error).__name__}({str(error)[:300]!r}) in {' > '.join(places[-4:])}"


def _follow(stream: int, inputs: Sequence[Any], report: Report, patience: float, seconds: float) -> tuple[int, bool]:
    """Read how inputs went until the process ends or one takes too long; return how many were told, and which."""
    rest, done, hung = b"", 0, False
    while done < len(inputs):
        hung = not select.select([stream], [], [], seconds if done else patience)[0]
        data = b"" if hung else os.read(stream, 1 << 16)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            _count(json.loads(line), inputs[done], report)
            done += 1
    # Then all that is left to come is the end, unless a process that was left behind has the stream open too.
    hung = hung or (done == len(inputs) and not select.select([stream], [], [], seconds)[0])
    os.close(stream)
    return done, hung


def _count(outcome: dict[str, Any], case: object, report: Report) -> None:
    report.count += 1
    if outcome["kind"] == "taken":
        report.taken += 1
    elif outcome["kind"] == "refused":
        report.reasons[_gist(outcome["told"])] += 1
    else:
        report.failures.append(Failure(case, outcome["kind"], outcome["told"]))
    if outcome["megabytes"] > report.peak_megabytes:
        report.peak_megabytes, report.peak_case = outcome["megabytes"], case
    if outcome["seconds"] > report.slowest_seconds:
        report.slowest_seconds, report.slowest_case = outcome["seconds"], case


def _named(case: object) -> str:
    text = repr(case)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _gist(text: str) -> str:
    """Return a message without its numbers and names."""
    words = "".join(" " if mark.isdigit() or mark in "'\"/()" else mark for mark in text).split()
    return " ".join(words)[-60:]


def _has_ended(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: int, surroundings: Path, hung: bool) -> tuple[str, str] | None:
    """Wait for a process, or make a hung one say where and die; tell what was wrong with its end."""
    hung = hung and not _has_ended(process)
    if hung:
        os.kill(process, signal.SIGABRT)
        deadline = time.monotonic() + 30  # the machine may be busy
        while not _has_ended(process) and time.monotonic() < deadline:
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    log = surroundings / "stderr.log"
    told = log.read_text(errors="backslashreplace") if log.exists() else ""
    told = told[max(0, told.rfind("Fatal Python error")) :][:1500]
    if hung:
        return "hang", told
    try:
        os.killpg(process, signal.SIGKILL)
        return "stray", "processes of its group were still running"
    except ProcessLookupError:
        pass
    code = os.waitstatus_to_exitcode(status)
    return ("crash" if code < 0 else "end", f"exit status {code}: {told}") if code else None


def _quit(told: str) -> NoReturn:
    os.write(2, told.encode())
    os._exit(3)


def _empty(folder: Path) -> None:
    with os.scandir(folder) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def _give_back() -> None:
    """Leave in this process's memory what is in use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class _Meter:
    """The memory of this process; the kernel's high-water mark is set back before each input."""

    def __init__(self) -> None:
        self._clear = os.open("/proc/self/clear_refs", os.O_WRONLY)
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._before = 0

    def reset(self) -> None:
        os.pwrite(self._clear, b"5", 0)
        self._before = self.resident()

    def grown(self) -> float:
        """Return the most megabytes above those at `reset`."""
        return max(0, self._field(b"VmHWM:") - self._before) / 1e6

    def resident(self) -> int:
        return self._field(b"VmRSS:")

    def data_limit(self, megabytes: float) -> int:
        """Return a limit on private memory that spares the machine and lets growth above the bound be measured."""
        return self._field(b"VmData:") + int(1.5e6 * megabytes) + (256 << 20)

    def _field(self, name: bytes) -> int:
        text = os.pread(self._status, 8192, 0)
        return int(text[text.index(name) + len(name) :].split(maxsplit=1)[0]) * 1024
