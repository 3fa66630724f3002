"""What the processes of a run say to each other of themselves, and what follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch.distributed import DistError

# EX_TEMPFAIL of sysexits.h: nothing is wrong with the command, start it again.
LOST = 75
# How gloo's and NCCL's errors read where they are plain RuntimeErrors.
COLLECTIVE = ("gloo/transport", "pair closure", "monitoredBarrier", "NCCL")


@dataclass(frozen=True)
class Word:
    """What a process says of itself.

    Args:
        rank: Its rank.
        host: Its machine.
        pid: Its number there.
        place: What its network is at.
        seconds: For how long.
        end: Why it ends: its work is done, a signal stopped it, an error of its own, an error of a collective.
        code: The exit code it will have.
        told: The error.
    """

    rank: int
    host: str
    pid: int
    place: str = ""
    seconds: float = 0.0
    end: Literal["", "done", "stopped", "failed", "cut off"] = ""
    code: int = 0
    told: str = ""


@dataclass(frozen=True)
class Action:
    """What a process does next: go on, end at once, stop as another was stopped, or rest as all is said."""

    kind: Literal["go on", "end", "stop", "rest"]
    line: str = ""
    code: int = 0
    stack: bool = False
    advice: bool = False
    who: Word | None = None


def judge(words: Sequence[Word], rank: int) -> Action:
    """Say what a rank does when all have said these words; every rank finds the same cause."""
    mine = words[rank]
    first = {end: next((word for word in words if word.end == end), None) for end in ("failed", "cut off", "stopped")}
    if failed := first["failed"]:
        # Its own line comes from where any error is told; the errors of others follow from it.
        if mine.end == "failed":
            return Action("rest")
        return Action("end", f"rank {rank} ends, as rank {failed.rank} ended with: {failed.told}", failed.code)
    if cut := first["cut off"]:
        return _end_of_waiting(words, mine, cut)
    if stopped := first["stopped"]:
        line = f"rank {rank} ends, as rank {stopped.rank} was stopped"
        if mine.end == "done":
            return Action("end", line, stopped.code)
        return Action("rest") if mine.end == "stopped" else Action("stop", line, stopped.code, who=stopped)
    return Action("rest" if all(word.end == "done" for word in words) else "go on")


def _end_of_waiting(words: Sequence[Word], mine: Word, cut: Word) -> Action:
    """End where all live and a collective has failed: its time was over, or a connection broke."""
    places = ", ".join(f"rank {word.rank} at {word.place} for {word.seconds:.0f} s" for word in words)
    stack = mine.end == ""
    if mine.rank != cut.rank:
        return Action("end", f"rank {mine.rank} ends, as rank {cut.rank} waited for it in vain", LOST, stack)
    line = f"the processes live, but waited for each other in vain: {places}; rank {cut.rank} was told: {cut.told}"
    return Action("end", line, LOST, advice=True)


def is_from_collective(error: BaseException) -> bool:
    """Tell whether an error says that another process did not take part, and not what is wrong in this one."""
    told = str(error)
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(text in told for text in COLLECTIVE)
    )


def explain_worker(error: BaseException) -> ValueError | None:
    """Say what became of a data worker that was killed or hangs; None for other errors."""
    told = " ".join(str(error).split())
    if not isinstance(error, RuntimeError) or "DataLoader" not in told:
        return None
    if "timed out after" in told:
        return ValueError(
            f"{told}: the data workers hang or are very slow; look at the storage of the data, lower data.num_workers, "
            "or raise --process_watch.worker_timeout (0 waits for ever)"
        )
    if "is killed by signal" in told or "exited unexpectedly" in told:
        cause = told.split(" Traceback")[0].rstrip(".")
        return ValueError(
            f"{cause}: most often the memory is full, or /dev/shm is; lower data.num_workers or data.batch_size"
        )
    return None
