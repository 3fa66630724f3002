"""Written sets of seals: whatever kills a start, the next one ends at the bytes of an unbroken run."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datamodules.seal_sets import MANIFEST, PLANES, read_seal_set
from experiments import prepare_seals
from experiments.prepare import PREPARATIONS
from experiments.prepare_seals import seals

ROOT = Path(__file__).parents[2]


def tree(folder):
    """All files by name, hidden ones left out, with their bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of three, made in this process."""

    def here(plan, output, todo, workers):
        for chunk in todo:
            prepare_seals.make_chunk(plan, output, chunk)

    monkeypatch.setattr(prepare_seals, "CHUNK", 3)
    monkeypatch.setattr(prepare_seals, "run", here)
    return here


def test_it_is_a_command():
    assert PREPARATIONS["seals"] is seals


def test_a_set_has_every_plane_and_says_what_it_is(tmp_path, small_chunks):
    seals(tmp_path, count=7, size=64)
    files = tree(tmp_path)
    assert len(files) == 7 * len(PLANES) + 3
    about = json.loads(files[MANIFEST])
    assert about["plan"]["count"] == 7
    assert about["plan"]["settings"]["size"] == 64
    assert about["sha256"]["text.jsonl"] == hashlib.sha256(files["text.jsonl"]).hexdigest()
    pictures = hashlib.sha256()
    for index in range(7):
        for plane in PLANES:
            digest = hashlib.sha256(files[f"{plane}/{index:06d}.png"]).hexdigest()
            pictures.update(f"{digest}\n".encode())
    assert about["sha256"]["pictures"] == pictures.hexdigest()
    assert len(read_seal_set(tmp_path)) == 7
    assert not (tmp_path / prepare_seals.PARTS_FOLDER).exists()


def test_a_broken_start_is_gone_on_with(tmp_path, small_chunks, monkeypatch):
    seals(tmp_path / "whole", count=8, size=64)

    def dies_in_the_second(plan, output, todo, workers):
        prepare_seals.make_chunk(plan, output, todo[0])
        (output / "images" / "000004.png").write_bytes(b"torn")
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_seals, "run", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        seals(tmp_path / "broken", count=8, size=64)
    made = []

    def remembering(plan, output, todo, workers):
        made.extend(todo)
        small_chunks(plan, output, todo, workers)

    monkeypatch.setattr(prepare_seals, "run", remembering)
    seals(tmp_path / "broken", count=8, size=64)
    assert made == [1, 2]
    assert tree(tmp_path / "broken") == tree(tmp_path / "whole")
    # A finished set is left as it is.
    seals(tmp_path / "broken", count=8, size=64)
    assert made == [1, 2]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"count": 9}, "begun with other settings"),
        ({"seed": 1}, "begun with other settings"),
        ({"domain": "clean"}, "begun with other settings"),
        ({"count": 0}, "--count"),
        ({"least": 3}, "seals"),
        ({"size": 8}, "size"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, small_chunks, changes, told):
    seals(tmp_path, count=2, size=64)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=told) as caught:
        seals(tmp_path, **{"count": 2, "size": 64} | changes)
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


def test_two_starts_do_not_write_one_set(tmp_path, small_chunks):
    lock = prepare_seals.FolderLock()
    assert lock.take(tmp_path, 0)
    with pytest.raises(ValueError, match="another start"):
        seals(tmp_path, count=2, size=64)
    lock.release()


def start(output, workers):
    words = [sys.executable, "-m", "experiments", "prepare", "seals", "--output", str(output), "--count", "520"]
    words += ["--size", "64", "--workers", str(workers)]
    return subprocess.Popen(words, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, env={**os.environ})


@pytest.mark.slow
def test_killed_processes_leave_nothing_that_the_next_start_does_not_mend(tmp_path):
    assert start(tmp_path / "whole", 1).wait() == 0
    for kill in range(2):
        process = start(tmp_path / "killed", 2)
        wanted = kill + 1
        while len(list((tmp_path / "killed").glob(".parts/0*.jsonl"))) < wanted and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / MANIFEST).exists()
    assert start(tmp_path / "killed", 2).wait() == 0
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
