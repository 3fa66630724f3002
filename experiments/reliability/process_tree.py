"""What a run and all the processes under it hold: memory, open files, threads, looked at from outside."""

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import psutil
from scipy.stats import theilslopes

GONE = (psutil.NoSuchProcess, psutil.AccessDenied)
MEBI = 1 << 20


@dataclass(frozen=True)
class Reading:
    """The sums over all processes at a moment.

    Memory is what belongs to the run alone: a page that its processes share counts once, pages of files not at all. PSS
    as a whole would count a library's page by how many programs on the machine happen to use it at the moment.
    """

    seconds: float
    done: int  # of whatever the run counts: steps, images
    memory_mib: float
    main_memory_mib: float
    open_files: int
    threads: int
    processes: int


@dataclass(frozen=True)
class Trend:
    """How a series goes on after its warm-up.

    Args:
        start: Median of the first fifth.
        end: Median of the last fifth.
        slope_per_hour: By Theil and Sen: the median of the slopes between all pairs, which single peaks do not move.
        least: The smallest reading.
        most: The largest reading.
    """

    start: float
    end: float
    slope_per_hour: float
    least: float
    most: float


def read_tree(process: psutil.Process, started: float, done: int) -> Reading:
    """Look at a process and its descendants; those that end meanwhile count nothing."""
    memory, files, threads, count = 0, 0, 0, 0
    main = 0
    for one in (process, *process.children(recursive=True)):
        with suppress(*GONE):
            pss = own_memory(one.pid)
            main = main or pss
            memory, files, threads, count = memory + pss, files + one.num_fds(), threads + one.num_threads(), count + 1
    return Reading(time.monotonic() - started, done, memory / MEBI, main / MEBI, files, threads, count)


def own_memory(pid: int) -> int:
    """Return the bytes of a process that no file holds, its shares of what it has in common with others."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    amounts = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines[1:])}
    return amounts["Pss_Anon"] + amounts["Pss_Shmem"]


def watch(
    process: psutil.Process, count_done: Callable[[], int], path: Path, every_s: float, until: Callable[[Reading], bool]
) -> list[Reading]:
    """Read until the process ends or `until` says so; each reading is a row of the file at once."""
    started = time.monotonic()
    readings: list[Reading] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Reading)])
        writer.writeheader()
        for reading in _readings(process, started, count_done, every_s):
            readings.append(reading)
            writer.writerow(asdict(reading))
            file.flush()
            if until(reading):
                break
    return readings


def _readings(
    process: psutil.Process, started: float, count_done: Callable[[], int], every_s: float
) -> Iterator[Reading]:
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        with suppress(*GONE):
            yield read_tree(process, started, count_done())
        time.sleep(every_s)


def trend_of(seconds: Sequence[float], values: Sequence[float]) -> Trend:
    """Describe a series by its ends and its robust slope."""
    series = np.asarray(values, float)
    fifth = max(1, len(series) // 5)
    return Trend(
        start=float(np.median(series[:fifth])),
        end=float(np.median(series[-fifth:])),
        slope_per_hour=float(theilslopes(series, np.asarray(seconds, float)).slope * 3600),
        least=float(series.min()),
        most=float(series.max()),
    )
