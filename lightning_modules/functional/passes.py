"""Passes of a network over images of many sizes: equal ones together, on a CPU a core each."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


def equal_together(sizes: Mapping[int, tuple[int, ...]], step: int) -> list[list[int]]:
    """Return the positions of images of equal sizes in parts of at most ``step``, those with the most numbers first."""
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for position, size in sizes.items():
        alike[size].append(position)
    parts = [part[start : start + step] for part in alike.values() for start in range(0, len(part), step)]
    # The largest first: a core that is through then waits for a small one at most.
    return sorted(parts, key=lambda part: len(part) * _product(sizes[part[0]]), reverse=True)


def side_by_side(run: Callable[[list[int]], None], parts: list[list[int]], device: torch.device) -> None:
    """Run each part, on a CPU a core each: a pass split over cores waits for the slowest at every layer.

    ``run`` is called in a thread that has no `torch.inference_mode` yet: it is a thread's own.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or min(threads, len(parts)) < 2:
        for part in parts:
            run(part)
        return
    try:
        list(_single_cores(threads).map(run, parts))
    finally:
        torch.set_num_threads(threads)  # a thread's own number is also the one of libraries and of threads to come


@cache
def _single_cores(threads: int) -> ThreadPoolExecutor:
    """Return threads that use a core each; they are kept, since starting one takes milliseconds."""
    return ThreadPoolExecutor(threads, "pass", initializer=torch.set_num_threads, initargs=(1,))


def _product(size: tuple[int, ...]) -> int:
    return int(torch.Size(size).numel())
