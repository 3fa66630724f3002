"""Evaluation with score normalisation against faiss's own flat search over the same matrices; memory of both.

    python -m experiments.benchmarks.retrieval [--json FILE]

50,000 references, 10,000 queries and 50,000 background descriptors of 512 numbers lie on disk as an evaluation leaves
them. Ours: reads them, normalises scores, searches, makes the figures with and without normalisation and, in a column
of its own, their bootstrap intervals. Baseline: faiss searches both matrices, already in memory, and keeps nothing
else. Each turn is a fresh process; times leave out imports, memory is the peak of the process's resident memory. On a
shared machine the ratio of processor seconds is the steadier one.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np

from callbacks.descriptor_store import DescriptorWriter, StoredDescriptors
from callbacks.metrics.bootstrap import bootstrap_intervals, value_of
from callbacks.metrics.copy_rankings import SearchSettings, at_indices, rank_copies
from callbacks.metrics.copy_statistics import copy_statistics, threshold_at_precision
from lightning_modules.functional.retrieval import unit_length

COUNTS = {"references": 50_000, "queries": 10_000, "background": 50_000}
SIZE = 512
NEEDED_RATIO = 1.3
ALLOWED_GB = 2.0
SETTINGS = SearchSettings(("Flat",), "1.0[0,2]", 10)
_ROWS_AT_A_TIME = 10_000

Row = dict[str, float | int | str]


def write_descriptors(folder: Path, counts: Sequence[int], size: int = SIZE) -> None:
    """Write unit vectors; every second query is a reference with noise, from nearly untouched to lost in it."""
    writer = DescriptorWriter(folder, 0)
    rng = np.random.default_rng(0)
    written = 0
    for part, count in enumerate(counts):
        for start in range(0, count, _ROWS_AT_A_TIME):
            rows = rng.standard_normal((min(_ROWS_AT_A_TIME, count - start), size), np.float32)
            if part == 1:
                copied = np.fromfile(folder / "rank0.f32", "<f4", len(rows) // 2 * size, offset=start // 2 * size * 4)
                strength = rng.uniform(0, 12, (len(rows) // 2, 1)).astype(np.float32)
                rows[::2][: len(rows) // 2] += strength * copied.reshape(-1, size)
            writer.append(np.arange(written, written + len(rows)), unit_length(rows))
            written += len(rows)
        writer.flush()
    writer.close()


def evaluate(folder: Path, counts: Sequence[int], resamples: int = 1000) -> Row:
    """Do what the evaluation callback does with descriptors on disk."""
    start, start_cpu = time.perf_counter(), time.process_time()
    stored = StoredDescriptors(folder)
    parts = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    rows = [stored.select(part, folder / f"selected{number}.f32")[1] for number, part in enumerate(parts)]
    references, queries, background = rows
    copied = np.arange(0, len(queries), 2)
    truth = np.stack([parts[1][copied], copied // 2], axis=1)
    figures = {}
    for ranking in rank_copies(queries, references, background, SETTINGS, folder):
        candidates = at_indices(ranking.candidates, parts[1], parts[0])
        threshold_at_precision(candidates, truth, parts[1])
        figures[ranking.label] = copy_statistics(candidates, truth, parts[1])
    values = {f"uAP {label}".strip(): value_of(named["uAP"], len(queries)) for label, named in figures.items()}
    compared, compared_cpu = time.perf_counter(), time.process_time()
    for named in figures.values():
        bootstrap_intervals(named, len(queries), resamples)
    done = time.perf_counter()
    return {
        "seconds": compared - start,
        "cpu_seconds": compared_cpu - start_cpu,
        "intervals_s": done - compared,
        **values,
    }


def search(folder: Path, counts: Sequence[int], size: int = SIZE) -> Row:
    """Search both matrices by faiss alone."""
    everything = np.fromfile(folder / "rank0.f32", "<f4").reshape(-1, size)
    references, queries, background = np.split(everything, np.cumsum(counts)[:-1])
    start, start_cpu = time.perf_counter(), time.process_time()
    faiss.knn(queries, background, 3, metric=faiss.METRIC_INNER_PRODUCT)
    faiss.knn(queries, references, 10, metric=faiss.METRIC_INNER_PRODUCT)
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}


def measure(counts: Sequence[int], repeats: int = 3) -> Row:
    """Medians of both sides, and the median of the ratios of turns."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_descriptors(folder, counts)
        turns = [{side: _in_fresh_process(side, folder, counts) for side in ("ours", "faiss")} for _ in range(repeats)]

    def median(side: str, name: str) -> float:
        return statistics.median(float(turn[side][name]) for turn in turns)

    def ratio(name: str) -> float:
        return statistics.median(float(turn["ours"][name]) / float(turn["faiss"][name]) for turn in turns)

    values = {name: round(float(value), 4) for name, value in turns[0]["ours"].items() if name.startswith("uAP")}
    return {
        "what": f"{counts[1]} queries, {counts[0]} references, {counts[2]} background, {repeats} turns",
        "threads": faiss.omp_get_max_threads(),
        "ours_s": round(median("ours", "seconds"), 2),
        "faiss_s": round(median("faiss", "seconds"), 2),
        "ratio": round(ratio("seconds"), 3),
        "needed_ratio": NEEDED_RATIO,
        "cpu_ratio": round(ratio("cpu_seconds"), 3),
        "intervals_s": round(median("ours", "intervals_s"), 2),
        "ours_gb": round(median("ours", "peak_gb"), 2),
        "allowed_gb": ALLOWED_GB,
        "faiss_gb": round(median("faiss", "peak_gb"), 2),
        **values,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the row and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.retrieval", description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the row")
    parser.add_argument("--counts", type=int, nargs=3, default=list(COUNTS.values()), help=" ".join(COUNTS))
    parser.add_argument("--repeats", type=int, default=3, help="turns of both sides")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        side, folder = options.child
        row = evaluate(Path(folder), options.counts) if side == "ours" else search(Path(folder), options.counts)
        # Linux counts in KiB.
        row["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(row))
        return
    row = measure(options.counts, options.repeats)
    print("  ".join(f"{name} {value}" if name != "what" else f"{value}:" for name, value in row.items()))
    if options.json is not None:
        report = {"python": platform.python_version(), "faiss": faiss.__version__, **row}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _in_fresh_process(side: str, folder: Path, counts: Sequence[int]) -> Row:
    command = [sys.executable, "-m", "experiments.benchmarks.retrieval", "--child", side, str(folder)]
    command += ["--counts", *map(str, counts)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 (our own module)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    main()
