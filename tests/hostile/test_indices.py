"""Hostile copy indices: searched in bounded memory, or refused in one line before faiss sees them."""

import functools
import hashlib
import json
import random
import shutil
import struct
import tempfile
from copy import deepcopy
from pathlib import Path

import faiss
import numpy as np
import pytest

from experiments.copy_index.faiss_files import check_lists
from experiments.copy_index.manifest import MANIFEST, read_manifest, writing
from experiments.copy_index.searching import CopyIndex
from experiments.copy_index.segments import read_faiss, write_flat, write_paths
from experiments.index import _judge
from tests.hostile.corpus import mutated
from tests.hostile.harness import run_hostile

DIMS, ROWS, LISTS = 8, 300, 4
ODD = (None, True, -1, 0, 1, 7, 10**6, 10**15, 2**63, 1.5, float("inf"), "", "x", "../../evil", "/etc/x", [], {}, [1])
NUMBERS = (0, 1, 2, 3, 5, 255, 256, 2**31, 2**32, 2**40, 2**63, 2**64 - 1)


def rows():
    found = np.random.default_rng(0).normal(size=(ROWS, DIMS)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def trained(kind):
    quantizer = faiss.IndexFlatIP(DIMS)
    if kind == "ivf":
        index = faiss.IndexIVFFlat(quantizer, DIMS, LISTS, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexIVFPQ(quantizer, DIMS, LISTS, 2, 8, faiss.METRIC_INNER_PRODUCT)
    index.train(rows())
    return index


@functools.lru_cache
def seeds():
    """The files of an index of each kind, by name."""
    found = {}
    for kind in ("flat", "ivf", "ivf_pq"):
        folder = Path(tempfile.mkdtemp())
        try:
            if kind == "flat":
                write_flat(folder / "000001.faiss", ROWS, DIMS, [rows()])
            else:
                index = trained(kind)
                faiss.write_index(index, str(folder / "000000.faiss"))
                index.add(rows())
                faiss.write_index(index, str(folder / "000001.faiss"))
            write_paths(folder, 1, [f"{number}.png" for number in range(ROWS)])
            np.array([3, 7], "<i8").tofile(folder / "000002.removed")
            found[kind] = {path.name: path.read_bytes() for path in folder.iterdir()}
        finally:
            shutil.rmtree(folder)
    return found


def manifest_of(kind, files):
    quality = {"recall_at_1": 1.0, "recall_at_10": 1.0, "queries": 5, "cosine": 0.75, "rows": ROWS, "lists": 1}
    sums = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    about = {"format": "sealmark copy index 1", "dims": DIMS, "kind": kind, "model": {"weights": "a"}, "files": sums}
    about |= {"segments": [{"number": 1, "rows": ROWS}], "next_number": 3, "nprobe": 2, "quality": quality}
    about |= {"removed": "000002.removed", "removed_rows": 2}
    return about | {"calibration": {"score": [0.1, 0.5], "precision": [0.5, 0.9]}}


def changed(data, rng):
    """A file of faiss in which a number of its head or an id of its end is another."""
    if rng.random() < 0.5:
        return mutated(data, rng)
    body = bytearray(data)
    place = rng.choice((4, 8, 37, 45, 57, 61, 94, rng.randrange(max(1, len(body) - 8)), len(body) - 8))
    if 0 <= place <= len(body) - 8:
        struct.pack_into("<Q", body, place, rng.choice(NUMBERS))
    return bytes(body)


def make(case, folder):
    """An index that whoever wrote it has sealed, so that its checksums are right."""
    rng = random.Random(case)
    kind = rng.choice(("flat", "ivf", "ivf_pq", "ivf_pq"))
    files = dict(seeds()[kind])
    for _ in range(rng.randrange(3)):
        name = rng.choice((*files, "000001.faiss", "000001.faiss"))
        files[name] = changed(files[name], rng)
    about = manifest_of(kind, files)
    for _ in range(rng.randrange(3)):
        places = [about, about["segments"][0], about["quality"], about["calibration"], about["files"]["000001.faiss"]]
        place = rng.choice(places)
        place[rng.choice((*place, "new"))] = deepcopy(rng.choice(ODD))
        if not all(isinstance(about[key], dict) for key in ("quality", "calibration", "files")):
            break
        if not isinstance(about["segments"], list) or not isinstance(about["files"].get("000001.faiss"), dict):
            break
        if not about["segments"] or not isinstance(about["segments"][0], dict):
            break
    out = folder / "index"
    out.mkdir()
    for name, data in files.items():
        (out / name).write_bytes(data)
    text = json.dumps(about).encode() if rng.random() < 0.95 else b"[" * 50_000
    (out / MANIFEST).write_bytes(mutated(text, rng) if rng.random() < 0.1 else text)
    return rng.randrange(3), out


def target(made, folder):
    turn, out = made
    if turn == 0:
        with writing(out):
            read_faiss(out / "000000.faiss", DIMS, 0, mapped=False).add(rows()[:2])
        return
    index = CopyIndex.open(out)
    scores, ids = index.search(rows()[:3] if index.manifest.dims == DIMS else rows()[:3, :1], 5)
    assert ids.max(initial=-1) < sum(segment.rows for segment in index.manifest.segments)
    index.paths(ids[ids >= 0])
    judge = _judge(index.manifest, 0.9)
    assert judge(float(np.nan_to_num(scores[0, 0])))
    assert judge.told


def fuzz(cases, tmp_path):
    seeds()
    faiss.omp_set_num_threads(1)  # threads of the parent are not there after a fork
    return run_hostile(target, cases, seconds=30, megabytes=200, sandbox=tmp_path, make=make)


def test_hundreds_of_hostile_indices(tmp_path):
    assert len(fuzz(range(150), tmp_path).reasons) > 5


@pytest.mark.long
def test_many_hostile_indices(tmp_path):
    fuzz(range(1000, 11_000), tmp_path)


@pytest.mark.parametrize("kind", ["ivf", "ivf_pq"])
@pytest.mark.parametrize("count", [0, 1, 2, ROWS])
def test_what_faiss_writes_is_taken(tmp_path, kind, count):
    index = trained(kind)
    index.add(rows()[:count])
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    check_lists(tmp_path / "x.faiss", DIMS, count)
    assert read_faiss(tmp_path / "x.faiss", DIMS, count).ntotal == count


@pytest.mark.parametrize("kind", ["ivf", "ivf_pq"])
def test_no_cut_file_and_no_other_size_passes(tmp_path, kind):
    """Every number before the codes decides about memory: none may be another."""
    data, path = seeds()[kind]["000001.faiss"], tmp_path / "x.faiss"
    for end in (*range(0, len(data), 97), len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match="is no index of 300 descriptors"):
            check_lists(path, DIMS, ROWS)
    path.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match="its end cannot be"):
        check_lists(path, DIMS, ROWS)
    for place in (4, 8, 33, 37, 53, 57, 61, 90):
        body = bytearray(data)
        body[place] ^= 0x40
        path.write_bytes(body)
        with pytest.raises(ValueError, match="is no index of 300 descriptors"):
            check_lists(path, DIMS, ROWS)


def test_ids_of_other_rows_are_refused(tmp_path):
    """faiss gives them out as they are, and the table of paths has no such row."""
    data = bytearray(seeds()["ivf"]["000001.faiss"])
    for number in (ROWS, -1, 2**40):
        struct.pack_into("<q", data, len(data) - 8, number)
        (tmp_path / "x.faiss").write_bytes(data)
        with pytest.raises(ValueError, match="its ids cannot be"):
            read_faiss(tmp_path / "x.faiss", DIMS, ROWS)


def test_a_link_in_the_place_of_a_manifest_is_not_written_through(tmp_path):
    (tmp_path / f"{MANIFEST}.part").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="is no plain file"), writing(tmp_path):
        pass


@pytest.mark.parametrize("named", ["", {}, [], 0, False, "000009.removed"])
def test_what_names_no_list_of_removed_rows_is_refused(tmp_path, named):
    files = seeds()["flat"]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest_of("flat", files) | {"removed": named}))
    with pytest.raises(ValueError, match="is not the manifest of an index"):
        read_manifest(tmp_path)
