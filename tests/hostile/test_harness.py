"""The harness sees what it is for: each kind of failure, by readers written to fail so."""

import ctypes
import gc
import os
import socket
import subprocess
import time

import numpy as np
import pytest

from tests.hostile.harness import run_hostile

KEPT = []


def refuse(text):
    raise ValueError(text)


def deep(number=0):
    return deep(number + 1)


def hidden_memory_error():
    try:
        np.ones(1 << 40)
    except MemoryError as error:
        raise ValueError("too large") from error


def write(path):
    with open(path, "w") as file:
        file.write("mine")


FAILING = {
    "exception": [
        lambda folder: {}["key"],
        lambda folder: deep(),
        lambda folder: "é".encode("ascii"),
        lambda folder: exit(2),
    ],
    "unclear": [lambda folder: refuse("two\nlines"), lambda folder: refuse(""), lambda folder: refuse("x" * 5000)],
    "memory": [lambda folder: np.ones(5_000_000).sum(), lambda folder: hidden_memory_error()],
    "crash": [lambda folder: ctypes.string_at(0), lambda folder: os.abort()],
    "outside": [
        lambda folder: write(folder / ".." / "escaped"),
        lambda folder: write("in the working folder"),
        lambda folder: os.rename(folder.parent / "precious.txt", folder / "stolen"),
        lambda folder: os.remove(folder.parent / "precious.txt"),
        lambda folder: os.mkdir("/tmp/hostile-folder"),
        lambda folder: (os.symlink(folder.parent, folder / "out"), write(folder / "out" / "through a link")),
        lambda folder: subprocess.run(["true"]),
        lambda folder: os.system("true"),
        lambda folder: socket.socket(),
        # Unseen by the audit hook.
        lambda folder: ctypes.CDLL(None).unlink(os.fsencode(folder.parent / "precious.txt")),
    ],
    "stray": [lambda folder: ctypes.CDLL(None).fork() or time.sleep(60)],
    "end": [lambda folder: KEPT.extend(os.dup(0) for _ in range(20))],
}
CASES = [(kind, number) for kind, readers in FAILING.items() for number in range(len(readers))]


def target(case, folder):
    FAILING[case[0]][case[1]](folder)


@pytest.mark.parametrize("kind", FAILING)
def test_each_kind_of_failure_is_seen_at_each_reader(kind, tmp_path):
    for case in CASES:
        if case[0] == kind:
            with pytest.raises(AssertionError, match=rf"\n{kind} at .*\({kind!r}, \d"):
                run_hostile(target, [case], seconds=20 if kind != "stray" else 0.5, megabytes=20, sandbox=tmp_path)


def test_what_the_parent_let_go_hides_no_memory(tmp_path):
    def reader(case, folder):
        gc.collect()
        np.ones(5_000_000)

    ring = [np.ones(8_000_000)]
    ring.append(ring)
    del ring
    with pytest.raises(AssertionError, match="\nmemory at 0"):
        run_hostile(reader, [0], seconds=20, megabytes=20, sandbox=tmp_path)

    np.ones(4_000_000)  # after which the allocator keeps 64 MB for itself
    blocks = [bytes(100_000) for _ in range(640)]
    del blocks
    with pytest.raises(AssertionError, match="\nmemory at 0"):
        run_hostile(reader, [0], seconds=20, megabytes=20, sandbox=tmp_path)


# Slow, as it goes alone: under the coverage of `make test` the forked process hangs without a stack.
@pytest.mark.slow
def test_a_hang_is_seen_and_says_where(tmp_path):
    with pytest.raises(AssertionError, match=r"(?s)\nhang at 1:.*test_harness.py"):
        run_hostile(
            lambda case, folder: time.sleep(60 * (case == 1)), range(3), seconds=1, megabytes=50, sandbox=tmp_path
        )


def test_what_goes_well_is_counted_over_lives(tmp_path):
    def reader(made, folder):
        assert list(folder.iterdir()) == [folder / "made"]
        write(folder / "mine")
        if made % 3 == 0:
            raise OSError(f"{made} divides by three")

    def make(case, folder):
        write(folder / "made")
        return case

    report = run_hostile(reader, range(31), seconds=20, megabytes=50, sandbox=tmp_path, make=make, life=10)
    assert (report.count, report.taken, report.reasons) == (31, 20, {"divides by three": 11})
    assert not list(tmp_path.iterdir())
