"""Preparations whose parts are made by processes, under one progress bar, and ended together."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any

import cv2

from experiments.shard_joining import progress_bar


def make_parts(
    make: Callable[[int], None], parts: Sequence[int], workers: int, title: str, total: int, unit: str
) -> None:
    """Make all parts, or raise what the first of them raised.

    Args:
        make: Makes a part and calls `count_done` as it goes on; a function of a module, with what it is bound to.
        parts: Numbers of the parts.
        workers: Most processes.
        title: What the bar says is done.
        total: Work of all parts, as `count_done` counts it.
        unit: Of what is counted a second.
    """
    if not parts:
        return
    context = get_context("forkserver")
    done = context.Array("q", 2)
    pool = ProcessPoolExecutor(min(workers, len(parts)), context, initializer=_start, initargs=(done,))
    pending: set[Future[None]] = set()
    try:
        with progress_bar() as bar:
            task = bar.add_task(title, total=total, rate="")
            pending = {pool.submit(make, part) for part in parts}
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                elapsed = max(1e-3, bar.tasks[0].elapsed or 0.0)
                bar.update(task, completed=done[0], rate=f"{done[1] / elapsed:.0f} {unit}/s")
    except BrokenProcessPool as error:
        raise ValueError(
            f"a worker was killed, perhaps for memory: lower --workers {workers} and start again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_done: Any = None  # work and items of all workers of this run


def count_done(work: int = 1) -> None:
    """Tell the bar, where there is one, of an item and of the work that it was."""
    if _done is not None:
        with _done.get_lock():
            _done[0] += work
            _done[1] += 1


def _start(done: Any) -> None:
    global _done
    _done = done
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End at once when the main process was killed: the next start makes this worker's part anew."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
