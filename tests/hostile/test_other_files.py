"""Hostile files of our own making and of public sets: caches, labels, lists, journals, results."""

import csv
import io
import json
import os
import random
from copy import deepcopy
from functools import lru_cache

import cv2
import h5py
import numpy as np
import pytest

from datamodules.images.shards import INDEX_TYPES, PackedNames, ShardIndex, ShardSource
from datamodules.seal_sets import PLANES, is_seal_set, read_seal_set, rest_seals
from datamodules.spectra_cache import COLUMNS, SpectraArray, cached_sets, read_about, read_index
from experiments.compare import RunResults
from experiments.copy_index.calibration import read_pairs
from experiments.prepare_seals import Plan, agree_on
from experiments.shard_joining import join
from lightning_modules.functional.challenge_files import read_descriptors, read_ground_truth, read_predictions
from lightning_modules.functional.verdicts import read_scores
from tests.hostile.corpus import mutated
from tests.hostile.harness import run_hostile

ODD = (None, True, -1, 0, 1, 10**15, 10**400, 1.5, float("nan"), "", "x", "../../precious.txt", "/etc/x", [], {}, [1])
JUNK = (b"", b"[" * 50_000, b"9" * 5_000, b"\xff\xfe\x00", b"null", b"[]", b"3", b'"x"', b"{", b"NaN", b"\0" * 200)


def altered(value, rng, times=2):
    """A JSON value in which some entries are others."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randrange(times + 1)):
        place = value
        while isinstance(place, dict | list) and place:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if rng.random() < 0.4 or not isinstance(place[key], dict | list) or not place[key]:
                place[key] = deepcopy(rng.choice(ODD))
                break
            place = place[key]
    return value


def as_json(value, rng):
    if rng.random() < 0.1:
        return rng.choice(JUNK)
    text = json.dumps(altered(value, rng)).encode()
    return mutated(text, rng) if rng.random() < 0.2 else text


def table(rows, rng):
    """A CSV whose cells, quotes and lines are wrong here and there."""
    stream = io.StringIO()
    rows = [list(row) for row in rows]
    for _ in range(rng.randrange(3)):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice((*ODD, "x" * 200_000, '"', "a\nb", "1e400", "nan", "\x1b[2J"))
    if rng.random() < 0.2:
        rng.choice(rows).append("more")
    csv.writer(stream).writerows(rows)
    data = stream.getvalue().encode()
    return mutated(data, rng) if rng.random() < 0.3 else data


def array_file(array, rng):
    """A file of numpy whose head says what it likes."""
    stream = io.BytesIO()
    np.save(stream, array)
    data = stream.getvalue()
    turn = rng.randrange(6)
    if turn == 0:
        return mutated(data, rng)
    if turn == 1:
        stream = io.BytesIO()
        np.save(stream, rng.choice((array.astype(np.float64), array.reshape(-1), array[None], np.array(3), array[:0])))
        return stream.getvalue()
    if turn == 2:
        stream = io.BytesIO()
        np.save(stream, np.array([{"a": os.system}], object), allow_pickle=True)
        return stream.getvalue()
    if turn == 3:
        old = str(array.shape).encode()
        new = rng.choice((b"(10**12,)", b"(-1,)", b"(" * 30, b"(999999999999,)", b"()", b"(1.5,)"))
        return data.replace(old, new.ljust(len(old)))
    return data


COCO = {
    "categories": [{"id": 1, "name": "round"}],
    "images": [{"id": 0, "file_name": "images/000000.png", "width": 17, "height": 9, "capture": "flat"}],
    "annotations": [
        {
            "id": 0,
            "image_id": 0,
            "category_id": 1,
            "bbox": [1, 1, 4, 4],
            "segmentation": [[1, 1, 4, 1, 4, 4]],
            "attributes": {
                "color": "red",
                "angle_deg": 0.0,
                "lines": [{"text": "A", "role": "ring", "polygon": [1, 1, 2, 2, 3, 1], "legible": True}],
            },
        }
    ],
}
TEXT = {"image": "images/000000.png", "source": "page", "text": "a", "polygon": [0, 0, 1, 1, 2, 0], "under_seal": False}


@lru_cache
def picture():
    return cv2.imencode(".png", np.zeros((9, 17, 3), np.uint8))[1].tobytes()


def seal_set(folder, rng):
    for plane in PLANES:
        (folder / plane).mkdir()
        (folder / plane / "000000.png").write_bytes(picture())
    (folder / "annotations.json").write_bytes(as_json(COCO, rng))
    (folder / "text.jsonl").write_bytes(as_json(TEXT, rng) + rng.choice((b"\n", b"", b"\n\n")))


def read_set(folder):
    found = read_seal_set(folder)
    for number in range(min(3, len(found))):
        found[number], found.annotations(number), found.text(number)
        assert found.path(number).startswith(str(folder))
        assert ".." not in found.path(number)


def rest_labels(folder, rng):
    (folder / "7.png").write_bytes(picture())
    points = [[0, 0], [1, 1], [2, 0]]
    (folder / "labels.json").write_bytes(as_json({"gt_7": [{"points": points, "transcription": "a"}]}, rng))


def spectra(folder, rng):
    rows = [[str(row), "train", f"v{row}", "0", "1", "sd", "s", "a.png", "PNG", ""] for row in range(2)]
    (folder / "index.csv").write_bytes(table([COLUMNS, *rows], rng))
    (folder / "spectra.npy").write_bytes(array_file(np.zeros((2, 3, 4, 4), np.float16), rng))
    (folder / "cache.json").write_bytes(as_json({"rows": 2}, rng))


def read_spectra(folder):
    read_about(folder)
    for lines in read_index(folder).values():
        for part in cached_sets(lines, with_facts=True)[1]:
            SpectraArray(folder / "spectra.npy").read(part.rows)


def shard_index(folder, rng):
    names, shards = PackedNames.pack(["a", "b"]), PackedNames.pack([rng.choice(("0.tar", "0.tar", "../x", "..", ""))])
    numbers = [np.zeros(2, np.int32), np.array([0, 8], np.int64), np.array([8, 8], np.int32)]
    if rng.random() < 0.4:
        odd = rng.choice(numbers)
        odd[rng.randrange(2)] = rng.choice((-1, 1, 9, 2**31 - 1))
    (folder / "index").mkdir()
    (folder / "shards").mkdir()
    (folder / "shards" / "0.tar").write_bytes(bytes(16))
    for name, array in zip(INDEX_TYPES, [*names.arrays, *numbers, *shards.arrays], strict=True):
        data = array_file(array, rng) if rng.random() < 0.2 else saved(array)
        (folder / "index" / f"{name}.npy").write_bytes(data)


def saved(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def read_shards(folder):
    source = ShardSource(folder)
    for number in range(len(source)):
        source.path(number)
        source.read(number)


def lists(folder, rng):
    rows = [["query_id", "reference_id", "score"], ["Q1", "R1", "0.5"], ["Q2", "", "0.25"]]
    width = rng.choice((2, 3))
    (folder / "pairs.csv").write_bytes(table([row[:width] for row in rows], rng))
    scores = [["image_filename", "score"], ["a.png", "0.5"]]
    (folder / "scores.csv").write_bytes(table(scores, rng))
    pair = as_json({"query": "a", "reference": "b"}, rng)
    (folder / "pairs.jsonl").write_bytes(pair + b"\n")


def read_lists(folder):
    turn = len((folder / "pairs.jsonl").read_bytes()) % 5
    if turn == 0:
        read_ground_truth(folder / "pairs.csv")
    elif turn == 1:
        read_predictions(folder / "pairs.csv")
    elif turn == 2:
        read_scores(folder / "scores.csv")
    else:
        list(read_pairs(folder / ("pairs.csv" if turn == 3 else "pairs.jsonl")))


def results(folder, rng):
    provenance = {"resamples": 3, "bootstrap_seed": 0}
    about = {"provenance": provenance, "results": [{"metric": "iou", "group": "", "value": 0.5, "n": 3}]}
    (folder / "results.json").write_bytes(as_json(about, rng))
    stream = io.BytesIO()
    np.savez_compressed(stream, names=np.array(["iou"]), draws=np.zeros((1, 3), np.float32))
    data = stream.getvalue()
    (folder / "results.npz").write_bytes(mutated(data, rng) if rng.random() < 0.6 else data)


def journals(folder, rng):
    (folder / "shards").mkdir()
    about = {"images": [{"name": "a", "offset": 0, "length": 1}], "sha256": "x", "left_out": [], "bytes": 4}
    about["source"] = ["s"]
    (folder / "shards" / "000000.json").write_bytes(as_json(about, rng))
    (folder / "shards" / "000000.tar").write_bytes(bytes(4))
    (folder / "manifest.json").write_bytes(as_json({"plan": {"count": 3}}, rng))


def read_journals(folder):
    if len((folder / "manifest.json").read_bytes()) % 2:
        join(folder, 1)
    else:
        agree_on(PLAN, folder)


KINDS = {
    "seals": (seal_set, read_set),
    "rest": (rest_labels, lambda folder: list(rest_seals(folder / "labels.json", folder))),
    "spectra": (spectra, read_spectra),
    "shards": (shard_index, read_shards),
    "lists": (lists, read_lists),
    "results": (results, lambda folder: RunResults.read(folder, "results")),
    "journals": (journals, read_journals),
}
PLAN = Plan(1, 0, None)  # type: ignore[arg-type]


def make(case, folder):
    rng = random.Random(case)
    kind = list(KINDS)[case % len(KINDS)]
    place = folder / "set"
    place.mkdir()
    KINDS[kind][0](place, rng)
    return kind, place


def target(made, folder):
    kind, place = made
    KINDS[kind][1](place)


def fuzz(cases, tmp_path):
    picture()
    return run_hostile(target, cases, seconds=30, megabytes=200, sandbox=tmp_path, make=make)


def test_hundreds_of_hostile_files(tmp_path):
    assert len(fuzz(range(210), tmp_path).reasons) > 10


@pytest.mark.long
def test_many_hostile_files(tmp_path):
    fuzz(range(1000, 15_000), tmp_path)


@pytest.mark.parametrize("name", ["../../x.png", "/etc/x.png", "a/../../x", 3, None, "a\0b"])
def test_a_seal_set_names_no_pictures_elsewhere(tmp_path, name):
    coco = {**COCO, "images": [{**COCO["images"][0], "file_name": name}]}
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    assert is_seal_set(tmp_path)
    with pytest.raises(ValueError, match="is no name of a picture in the set"):
        read_seal_set(tmp_path)


def test_texts_with_line_ends_of_other_alphabets_are_whole(tmp_path):
    seal_set(tmp_path, random.Random(0))
    (tmp_path / "annotations.json").write_text(json.dumps(COCO))
    (tmp_path / "text.jsonl").write_text(json.dumps({**TEXT, "text": "a\u2028b\x85c"}, ensure_ascii=False) + "\n")
    assert read_seal_set(tmp_path).text(0)[0]["text"] == "a\u2028b\x85c"


@pytest.mark.parametrize("kind", [0, -1, 99, "round", None])
def test_a_seal_of_no_kind_is_refused(tmp_path, kind):
    seal_set(tmp_path, random.Random(0))
    coco = {**COCO, "annotations": [{**COCO["annotations"][0], "category_id": kind}]}
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    (tmp_path / "text.jsonl").write_text("")
    with pytest.raises(ValueError, match="cannot be understood"):
        read_seal_set(tmp_path)[0]


@pytest.mark.parametrize("row", ["-1", "2", "x", "1.5", ""])
def test_a_cache_of_spectra_names_rows_that_there_are(tmp_path, row):
    spectra(tmp_path, random.Random(3))
    (tmp_path / "spectra.npy").write_bytes(saved(np.zeros((2, 3, 4, 4), np.float16)))
    with (tmp_path / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, [row, "train", "v0", "0", "1", "sd", "s", "a.png", "PNG", ""]])
    with pytest.raises(ValueError, match=r"index\.csv, line 2: row"):
        read_index(tmp_path)


@pytest.mark.parametrize("name", ["../x.tar", "/x.tar", "..", ""])
def test_a_shard_does_not_lie_elsewhere(tmp_path, name):
    index = ShardIndex(
        PackedNames.pack(["a"]),
        np.zeros(1, np.int32),
        np.zeros(1, np.int64),
        np.ones(1, np.int32),
        PackedNames.pack([name]),
    )
    index.save(tmp_path / "index")
    with pytest.raises(ValueError, match="leads out of its folder"):
        ShardIndex.load(str(tmp_path))


@pytest.mark.parametrize("kind", ["link", "external", "virtual", "huge"])
def test_descriptors_of_a_submission_lie_in_its_file(tmp_path, kind):
    path, other = tmp_path / "a.h5", tmp_path / "b.h5"
    with h5py.File(other, "w") as file:
        file["query"] = np.zeros((1, 2), np.float32)
    with h5py.File(path, "w") as file:
        file["reference"] = np.zeros((1, 2), np.float32)
        for name in ("query_ids", "reference_ids"):
            file.create_dataset(name, data=["a"], dtype=h5py.string_dtype())
        if kind == "link":
            file["query"] = h5py.ExternalLink(str(other), "query")
        elif kind == "external":
            file.create_dataset("query", (1, 2), "float32", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((1, 2), "float32")
            layout[:] = h5py.VirtualSource(str(other), "query", (1, 2))
            file.create_virtual_dataset("query", layout)
        else:
            file.create_dataset("query", (10**7, 10**5), "float32", chunks=(1, 8))
    with pytest.raises(ValueError, match=r"is no data set of this file|claims .* bytes in a file of"):
        read_descriptors(path)
