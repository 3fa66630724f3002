"""A run that leaks is told from one that does not; the hours themselves are long tests."""

import json
import subprocess
import sys
import time

import psutil
import pytest

from experiments.reliability import million, soak
from experiments.reliability.process_tree import Reading, own_memory, trend_of, watch

# Holds, or with an argument keeps taking, memory in a child process and open files in itself.
PROGRAM = """
import os, subprocess, sys, time
leak = len(sys.argv) > 1
child = "import time; held = []\\nwhile True: held.append(b'x' * ({} << 20)); time.sleep(0.05)".format(int(leak))
subprocess.Popen([sys.executable, "-c", child])
held = []
while True:
    if leak:
        held.append(open(os.devnull))
    time.sleep(0.05)
"""


def readings_of(tmp_path, *words):
    run = subprocess.Popen([sys.executable, "-c", PROGRAM, *words])
    process = psutil.Process(run.pid)
    deadline = time.monotonic() + 20
    while not process.children() and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        return watch(process, lambda: 3, tmp_path / "readings.csv", 0.05, lambda now: now.seconds > 1.5)
    finally:
        for one in (*process.children(), process):
            one.kill()
        run.wait()


@pytest.mark.parametrize("leaks", [False, True])
def test_growth_in_any_process_of_the_tree_is_seen(tmp_path, leaks, capsys):
    readings = readings_of(tmp_path, *["leak"] * leaks)
    assert readings[-1].processes == 2
    assert readings[-1].memory_mib > readings[-1].main_memory_mib > 0
    rows = (tmp_path / "readings.csv").read_text().splitlines()
    assert len(rows) == len(readings) + 1
    assert soak.report(readings, 0.3, tmp_path) == int(leaks)
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["flat"] is not leaks
    assert (told["open_files"]["end"] > told["open_files"]["start"]) is leaks
    assert ("NOT flat" in capsys.readouterr().out) is leaks


def test_one_peak_does_not_move_the_slope():
    seconds = list(range(0, 3600, 60))
    level = [100.0 + second / 3600 for second in seconds]
    level[30] = 900.0
    trend = trend_of(seconds, level)
    assert trend.slope_per_hour == pytest.approx(1.0, abs=1e-6)
    assert trend.most == 900.0
    assert trend.end - trend.start == pytest.approx(0.8, abs=0.02)


def test_watching_ends_with_the_process(tmp_path):
    run = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    readings = watch(psutil.Process(run.pid), lambda: 0, tmp_path / "readings.csv", 0.1, lambda now: False)
    assert run.wait() == 0
    assert readings
    assert all(isinstance(reading, Reading) for reading in readings)


def test_a_missing_and_a_repeated_image_are_found(tmp_path, capsys):
    lines = [json.dumps({"index": index}) for index in (0, 1, 1)]
    (tmp_path / "predictions.rank0.jsonl").write_text("\n".join(lines) + "\n")
    assert million.check(tmp_path, 3) == 1
    assert json.loads(capsys.readouterr().out) == {"images": 3, "missing": 1, "twice": 1}
    (tmp_path / "predictions.rank1.jsonl").write_text('{"index": 2}\n')
    assert million.check(tmp_path, 3) == 1
    (tmp_path / "predictions.rank0.jsonl").write_text('{"index": 0}\n{"index": 1}\n')
    assert million.check(tmp_path, 3) == 0


@pytest.mark.long
@pytest.mark.parametrize("command", ["fit", "predict"])
def test_an_hour_in_flat_memory(command, tmp_path):
    assert soak.main([command, "--minutes", "60", "--output", str(tmp_path)]) == 0


@pytest.mark.long
def test_a_million_images_each_once(tmp_path):
    assert million.main(["--output", str(tmp_path)]) == 0


def test_memory_is_that_of_the_run_alone(tmp_path):
    """A mapped file counts nothing, what was allocated counts, what a child shares counts once."""
    (tmp_path / "large").write_bytes(bytes(48 << 20))
    program = (
        "import mmap, os, sys, time\n"
        f"mapped = mmap.mmap(os.open({str(tmp_path / 'large')!r}, os.O_RDONLY), 0, prot=mmap.PROT_READ)\n"
        "sum(mapped[::4096])\n"
        "held = bytearray(b'x' * (32 << 20)); os.fork(); os.write(1, b'1\\n'); time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    process = psutil.Process(run.pid)
    try:
        assert run.stdout.readline() == run.stdout.readline() == b"1\n"
        whole = sum(own_memory(one.pid) for one in (process, *process.children())) / (1 << 20)
        assert 32 < whole < 47
    finally:
        for one in (*process.children(), process):
            one.kill()
        run.wait()
    with pytest.raises(psutil.NoSuchProcess):
        own_memory(run.pid)
