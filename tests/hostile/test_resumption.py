"""Hostile folders of predictions: what a later start reads, repairs and writes there stays there."""

import contextlib
import json
import os
import random
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from callbacks.descriptor_files import read_descriptors
from callbacks.prediction_files import FolderLock, JsonLines
from callbacks.prediction_writers import PredictionWriter
from callbacks.realised_sets import RealisedSet
from experiments.copy_index.inputs import DescriptorFolders
from tests.hostile.corpus import mutated
from tests.hostile.harness import run_hostile

ROW = np.ones(4, "<f4") / 2
ODD = (
    None,
    True,
    -5,
    0,
    4,
    10**18,
    10**400,
    1.5,
    float("nan"),
    "",
    "x",
    "../../precious.txt",
    "/etc/passwd",
    [],
    {},
    ["a"],
)
ENTRIES = (
    *("predictions.rank0.jsonl", "predictions.rank1.jsonl", "predictions.rankx.jsonl", "descriptors.rank0.f32"),
    *("skipped.rank0.jsonl", "skipped.rank9.jsonl", "predictions.json", ".lock.rank0", ".lock.rank1", "images"),
    *("images/000000_a_mask.png", "images/000001_b_mask.png.part", "predictions.json.part", "labels.rank0.jsonl"),
    *("realised", "realised/labels.rank0.jsonl", "realised/images", "realised/images/000001.png.part", "notes.part"),
)


def record(rng):
    row = {"index": 0, "path": "a.png", "descriptor_size": 4, "images": {"mask": "images/000000_a_mask.png"}}
    if rng.random() < 0.4:
        row[rng.choice(("index", "path", "descriptor_size", "images", "new"))] = deepcopy(rng.choice(ODD))
    if rng.random() < 0.1:
        row["images"] = {rng.choice(("mask", "", "../x")): deepcopy(rng.choice(ODD))}
    label = {"file_name": "images/000000.png", "width": 4, "height": 4, "text": [{"text": "a"}], "categories": [{}]}
    if rng.random() < 0.4:
        label[rng.choice((*label, "annotations", "changed_outside"))] = deepcopy(rng.choice(ODD))
    return json.dumps(row | label).encode()


def lines(rng):
    """Lines of predictions: whole ones, torn ones, and what is none."""
    kinds = (
        lambda: record(rng),
        lambda: b"[" * rng.choice((10, 50_000)),
        lambda: rng.choice((b"", b"null", b"3", b"[]", b'"x"', b"\xff\xfe", b"\0" * 100, b"9" * 5_000, b"NaN", b"{")),
        lambda: b'{"path": "' + b"x" * rng.choice((10, 2_000_000)) + b'"}',
        lambda: mutated(record(rng), rng),
    )
    found = [rng.choices(kinds, (12, 1, 1, 0.3, 2))[0]() for _ in range(rng.randrange(4))]
    return b"\n".join(found) + rng.choice((b"\n", b"\n", b""))


def content(name, rng):
    if name.endswith(".jsonl"):
        return lines(rng)
    if name.endswith(".f32"):
        return ROW.tobytes() * rng.randrange(4) + b"\0" * rng.choice((0, 0, 1, 7))
    about = rng.choice(({"fingerprint": "mine"}, {"fingerprint": deepcopy(rng.choice(ODD))}, deepcopy(rng.choice(ODD))))
    return json.dumps(about).encode() if rng.random() < 0.9 else b"[" * 50_000


def place(path, name, rng):
    """Put a file, or what is none, where a run looks for its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    turn = rng.random()
    if turn < 0.06:
        path.symlink_to(rng.choice(("../../../precious.txt", "../../../nothing-yet", "../../..", path.name)))
    elif turn < 0.08:
        os.mkfifo(path)
    elif turn < 0.1 or name in ("images", "realised", "realised/images"):
        path.mkdir(exist_ok=True)
    else:
        path.write_bytes(content(name, rng))


def make(case, folder):
    rng = random.Random(case)
    out = folder / "out"
    out.mkdir()
    for name in rng.sample(ENTRIES, rng.randint(1, 8)):
        path = out / name
        # What is in the place of a folder has nothing in it; a link may lead to itself.
        with contextlib.suppress(FileExistsError, NotADirectoryError, RuntimeError):
            if path.parent.resolve().is_relative_to(folder.resolve()):
                place(path, name, rng)
    return rng.randrange(6), out


class Trainer(SimpleNamespace):
    """What the writers ask of a trainer."""

    def __init__(self, out):
        super().__init__(global_rank=0, world_size=1, is_global_zero=True, log_dir=str(out), ckpt_path=None)
        self.default_root_dir, self.callbacks, self.predict_loop = str(out), [], SimpleNamespace()
        self.strategy = SimpleNamespace(barrier=lambda _: None, broadcast=lambda value: value)
        self.datamodule = SimpleNamespace(exclude_from_prediction=lambda done: [path.encode() for path in done])
        self.predict_dataloaders = None


MODULE = SimpleNamespace(prediction_fingerprint=lambda: "mine", hparams={})


def predict(out, writer, module=MODULE):
    """A whole run over two inputs, one of them new."""
    trainer = Trainer(out)
    pixels = np.zeros((2, 2), np.uint8)
    rows = [{"index": index, "path": f"{name}.png"} for index, name in enumerate("bc")]
    outputs = {"records": rows, "images": [{"mask": pixels}] * 2, "descriptors": torch.full((2, 4), 0.5)}
    try:
        writer.setup(trainer, module, "predict")
        writer.on_predict_start(trainer, module)
        writer.on_predict_batch_end(trainer, module, outputs, {"skipped": [{"path": "d", "reason": "torn"}]}, 0)
        writer.on_predict_end(trainer, module)
        writer.teardown(trainer, module, "predict")
    except Exception as error:
        writer.on_exception(trainer, module, error)
        raise


def target(made, folder):
    turn, out = made
    before = sorted(path for path in out.rglob("*.part") if path.name == "notes.part")
    if turn < 3:
        predict(out, PredictionWriter(str(out), writer_threads=1))
    elif turn == 3:
        records, rows = read_descriptors(out)
        assert len(records) == len(rows) == len(list(records))
        rows[:]
    elif turn == 4:
        found = DescriptorFolders([out])
        assert len(list(found.paths())) == len(found)
        found[0:2]
    else:
        realise(out)
    assert all(path.exists() or path.is_symlink() for path in before)


def realise(out):
    # Its own folder in that of a run; one that a user names may be a link.
    callback, trainer = RealisedSet(), Trainer(out)
    callback.setup(trainer, MODULE, "predict")
    callback.on_predict_start(trainer, MODULE)
    callback.on_predict_end(trainer, MODULE)
    callback.teardown(trainer, MODULE, "predict")


def fuzz(cases, tmp_path):
    return run_hostile(target, cases, seconds=10, megabytes=200, sandbox=tmp_path, make=make)


# Slow, as it goes alone: under the coverage of `make test` its forked process hangs.
@pytest.mark.slow
def test_hundreds_of_hostile_folders(tmp_path):
    assert len(fuzz(range(250), tmp_path).reasons) > 5


@pytest.mark.long
def test_many_hostile_folders(tmp_path):
    fuzz(range(1000, 13_000), tmp_path)


@pytest.mark.parametrize(
    "name", ["predictions.rank0.jsonl", "skipped.rank0.jsonl", "descriptors.rank0.f32", ".lock.rank0", "images"]
)
@pytest.mark.parametrize("there", [True, False])
def test_a_link_does_not_lead_a_run_out_of_its_folder(tmp_path, name, there):
    precious, out = tmp_path / "precious", tmp_path / "out"
    out.mkdir()
    if there:
        precious.write_bytes(b"not yours")
    (out / name).symlink_to(precious)
    with pytest.raises(ValueError, match="is no plain file but a link"):
        predict(out, PredictionWriter(str(out)))
    assert precious.exists() == there
    assert not there or precious.read_bytes() == b"not yours"


def test_a_link_for_a_half_made_file_is_not_written_through(tmp_path):
    (tmp_path / "x.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"cannot write .*x\.jsonl"):
        JsonLines(tmp_path / "x.jsonl")
    (tmp_path / ".lock.rank0").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="cannot write"):
        FolderLock().take(tmp_path, 0)
    assert not (tmp_path / "precious").exists()


def test_half_made_files_of_others_stay(tmp_path):
    """A user may name the folder of downloads."""
    mine = [tmp_path / "film.mkv.part", tmp_path / "deep" / "er" / "x.part"]
    ours = [tmp_path / "images" / "000000_a_mask.png.part", tmp_path / "predictions.json.part"]
    for path in (*mine, *ours):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    predict(tmp_path, PredictionWriter(str(tmp_path)))
    assert all(path.exists() for path in mine)
    assert not any(path.exists() for path in ours)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[]", "line 1, is no"),
        ('{"path": null}', "line 1, is no prediction"),
        ('{"path": "a", "images": "x"}', "line 1, is no prediction"),
        ('{"path": "a", "images": {"mask": 3}}', "line 1, is no prediction"),
        ('{"path": "a", "descriptor_size": "x"}', "a row of x numbers"),
        ('{"path": "a", "descriptor_size": -5}', "a row of -5 numbers"),
        ('{"path": "a", "descriptor_size": 1e400}', "a row of inf numbers"),
        ("[" * 50_000, "too many brackets"),
        ("9" * 5_000, "not JSON"),
    ],
)
def test_a_line_that_is_no_prediction_is_named_and_nothing_is_cut(tmp_path, line, told):
    path = tmp_path / "predictions.rank0.jsonl"
    path.write_text(f"{line}\n")
    (tmp_path / "descriptors.rank0.f32").write_bytes(ROW.tobytes())
    with pytest.raises(ValueError, match=told):
        predict(tmp_path, PredictionWriter(str(tmp_path)))
    assert path.read_text() == f"{line}\n" or "descriptor_size" not in line


@pytest.mark.parametrize("text", ["[]", "[" * 50_000, "{", "3", "\udcff"])
def test_a_description_of_predictions_that_is_none_is_named(tmp_path, text):
    (tmp_path / "predictions.json").write_bytes(os.fsencode(text))
    with pytest.raises(ValueError, match=r"predictions\.json"):
        predict(tmp_path, PredictionWriter(str(tmp_path)))
    with pytest.raises((ValueError, OSError)):
        DescriptorFolders([tmp_path])


def test_labels_of_wrong_types_are_named(tmp_path):
    (tmp_path / "realised").mkdir()
    (tmp_path / "realised" / "labels.rank0.jsonl").write_text('{"file_name": "a", "width": 1}\n')
    with pytest.raises(ValueError, match="are not those of a realised set"):
        realise(tmp_path)
