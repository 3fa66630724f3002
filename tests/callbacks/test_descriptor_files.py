import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from callbacks.descriptor_files import SIZE_KEY, Records, RowFile, Rows, read_descriptors
from callbacks.prediction_writers import PredictionWriter

DIMS = 6


def row_of(index):
    return np.arange(DIMS, dtype=np.float32) + 100 * index


class Describer(lightning.LightningModule):
    """Answers with a descriptor that holds the index of the input, and an image that takes a while."""

    def __init__(self, die_at=None, dims=DIMS, kill=False):
        super().__init__()
        self.die_at, self.dims, self.kill, self.seen = die_at, dims, kill, []

    def prediction_fingerprint(self):
        return "describer"

    def predict_step(self, batch, batch_idx):
        indices = batch["index"].tolist()
        if self.die_at in indices:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("killed here")
        self.seen += indices
        rows = torch.tensor(np.array([row_of(i)[: self.dims] for i in indices])).reshape(-1, self.dims)
        return {
            "records": [{"path": p, "index": i} for p, i in zip(batch["path"], indices, strict=True)],
            "images": [{"mask": np.full((64, 64), i, np.uint8)} for i in indices],
            "descriptors": rows.double() if batch_idx == 0 else rows,
        }


class Paths(lightning.LightningDataModule):
    def __init__(self, count):
        super().__init__()
        self.count, self.excluded = count, set()

    def exclude_from_prediction(self, paths):
        self.excluded = paths

    def predict_dataloader(self):
        todo = [i for i in range(self.count) if f"/{i}.png" not in self.excluded]
        return DataLoader(todo, batch_size=2, collate_fn=self.collate)

    def collate(self, indices):
        return {"index": torch.tensor(indices), "path": [f"/{i}.png" for i in indices], "skipped": []}


def predict(folder, module, count):
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[PredictionWriter(str(folder))],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=str(folder),
    )
    trainer.predict(module, datamodule=Paths(count))


def check(folder, count):
    records, rows = read_descriptors(folder)
    assert rows.shape == (count, DIMS)
    assert sorted(record["index"] for record in records) == list(range(count))
    np.testing.assert_array_equal(rows[:], [row_of(record["index"]) for record in records])


def write_folder(folder, counts, dims=DIMS):
    """Write what predict would, the ranks dealing inputs in turn."""
    folder.mkdir(exist_ok=True)
    for rank, count in enumerate(counts):
        indices = [len(counts) * i + rank for i in range(count)]
        lines = [json.dumps({"path": f"/{i}.png", "index": i, SIZE_KEY: dims}) + "\n" for i in indices]
        (folder / f"predictions.rank{rank}.jsonl").write_text("".join(lines))
        np.array([row_of(i)[:dims] for i in indices], "<f4").tofile(folder / f"descriptors.rank{rank}.f32")


def test_row_i_belongs_to_line_i(tmp_path):
    predict(tmp_path, Describer(), 7)
    check(tmp_path, 7)
    assert (tmp_path / "descriptors.rank0.f32").stat().st_size == 7 * DIMS * 4


def test_a_start_after_an_error_goes_on(tmp_path):
    with pytest.raises(RuntimeError):
        predict(tmp_path, Describer(die_at=4), 9)
    check(tmp_path, 4)
    second = Describer()
    predict(tmp_path, second, 9)
    assert second.seen == [4, 5, 6, 7, 8]
    check(tmp_path, 9)


def test_a_start_after_sigkill_goes_on(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_descriptor_files import Describer, predict\n"
        "predict(sys.argv[1], Describer(die_at=6, kill=True), 9)"
    )
    here = Path(__file__)
    done = subprocess.run([sys.executable, "-c", program, tmp_path, here.parent], cwd=here.parents[2])
    assert done.returncode == -signal.SIGKILL
    predict(tmp_path, Describer(), 9)
    check(tmp_path, 9)


@pytest.mark.parametrize("cut_rows", [0, 1, DIMS * 4 - 1, DIMS * 4, 3 * DIMS * 4 + 5])
@pytest.mark.parametrize("cut_lines", [0, 1, 70])
def test_both_files_are_cut_to_the_shorter_whole(tmp_path, cut_rows, cut_lines):
    predict(tmp_path, Describer(), 5)
    for name, cut in (("descriptors.rank0.f32", cut_rows), ("predictions.rank0.jsonl", cut_lines)):
        os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - cut)
    again = Describer()
    predict(tmp_path, again, 8)
    assert set(again.seen) >= {5, 6, 7}
    check(tmp_path, 8)


def test_a_row_whose_line_could_not_be_written_is_written_once(tmp_path, monkeypatch):
    from callbacks import prediction_writers

    real, failed = prediction_writers.JsonLines.append, []

    def append(self, record):
        if record.get("index") == 3 and not failed:
            failed.append(1)
            raise OSError("no space left")
        real(self, record)

    monkeypatch.setattr(prediction_writers.JsonLines, "append", append)
    with pytest.raises(OSError, match="no space"):
        predict(tmp_path, Describer(), 6)
    predict(tmp_path, Describer(), 6)
    check(tmp_path, 6)


def test_predictions_without_descriptors_are_not_continued_with_them(tmp_path):
    predict(tmp_path, Describer(), 4)
    lines = (tmp_path / "predictions.rank0.jsonl").read_text().splitlines()
    plain = [{key: value for key, value in json.loads(line).items() if key != SIZE_KEY} for line in lines]
    (tmp_path / "predictions.rank0.jsonl").write_text("".join(json.dumps(each) + "\n" for each in plain))
    with pytest.raises(ValueError, match="does not hold a row of 6 numbers for each of the 4"):
        predict(tmp_path, Describer(), 6)
    with pytest.raises(ValueError, match="holds no descriptors"):
        read_descriptors(tmp_path)


def test_rows_of_another_length_are_refused(tmp_path):
    file = RowFile(tmp_path / "rows", 0)
    file.put(0, np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="rows of 4 numbers, got one of 5"):
        file.put(1, np.zeros(5, np.float32))
    file.close()
    file.close()


def test_all_ranks_are_read_as_one(tmp_path):
    write_folder(tmp_path, [4, 0, 3, 2])
    records, rows = read_descriptors(tmp_path)
    wanted = [record["index"] for record in records]
    assert wanted == [0, 4, 8, 12, 2, 6, 10, 3, 7]
    assert [records[i]["index"] for i in range(9)] == wanted
    assert [record["index"] for record in records[2:-1]] == wanted[2:-1]
    assert records[-1]["index"] == 7
    whole = np.array([row_of(i) for i in wanted])
    np.testing.assert_array_equal(np.asarray(rows), whole)
    for part in (slice(3, 6), slice(0, 0), slice(5, 99), slice(None, None, 2)):
        np.testing.assert_array_equal(rows[part], whole[part])
    order = np.array([8, 0, 4, 4])
    np.testing.assert_array_equal(rows[order], whole[order])
    with pytest.raises(IndexError):
        records[9]


def test_ranks_after_nine_keep_their_order(tmp_path):
    write_folder(tmp_path, [1] * 11)
    assert [record["index"] for record in read_descriptors(tmp_path)[0]] == list(range(11))


def test_what_is_incomplete_is_left_out(tmp_path):
    write_folder(tmp_path, [4, 3])
    with (tmp_path / "descriptors.rank0.f32").open("ab") as file:
        file.write(b"half a row")
    with (tmp_path / "predictions.rank1.jsonl").open("ab") as file:
        file.write(b'{"path": "to')
    records, rows = read_descriptors(tmp_path)
    assert len(records) == len(rows) == 7


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no predictions"),
        (lambda folder: (folder / "descriptors.rank1.f32").unlink(), "holds no descriptors"),
        (lambda folder: (folder / "predictions.rank0.jsonl").write_text("zzz\n"), "line 1, is not JSON"),
        (lambda folder: (folder / "predictions.rank0.jsonl").write_text("[1]\n"), "line 1, is no prediction"),
        (lambda folder: write_folder(folder, [2], dims=3), "different sizes"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, damage, told):
    write_folder(tmp_path, [2, 2])
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=told) as error:
        read_descriptors(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_reading_holds_no_rows(tmp_path):
    (tmp_path / "rows").touch()
    os.truncate(tmp_path / "rows", 1 << 36)
    rows = Rows([tmp_path / "rows"], [1 << 25], 512)
    assert rows.shape == (1 << 25, 512)
    assert not rows[(1 << 25) - 2 :].any()
    assert len(Records([], [])) == 0
