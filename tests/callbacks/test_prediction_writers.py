import errno
import fcntl
import os
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import lightning
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from callbacks import prediction_files
from callbacks.prediction_files import FolderLock, JsonLines, complete_size, read_records
from callbacks.prediction_writers import PredictionWriter, image_prefix


class Painter(lightning.LightningModule):
    """Answers with a mask and an overlay that hold the index of the input."""

    def __init__(self, model="a", side=8, die_at=None):
        super().__init__()
        self.model, self.side, self.die_at = model, side, die_at
        self.seen = []

    def prediction_fingerprint(self):
        return self.model

    def predict_step(self, batch, batch_idx):
        indices = batch["index"].tolist()
        if self.die_at is not None and self.die_at in indices:
            raise RuntimeError("killed here")
        self.seen += indices
        shape = (self.side, self.side + 1)
        return {
            "records": [{"path": p, "index": i, "score": 0.5} for p, i in zip(batch["path"], indices, strict=True)],
            "images": [
                {"mask": np.full(shape, i % 256, np.uint8), "overlay": np.full((*shape, 3), (i % 256, 7, 9), np.uint8)}
                for i in indices
            ],
        }


class Paths(lightning.LightningDataModule):
    def __init__(self, paths, unreadable=(), batch_size=2):
        super().__init__()
        self.inputs, self.unreadable, self.batch_size, self.excluded = paths, set(unreadable), batch_size, set()

    def exclude_from_prediction(self, paths):
        self.excluded = paths

    def predict_dataloader(self):
        todo = [(i, p) for i, p in enumerate(self.inputs) if p not in self.excluded]
        return DataLoader(todo, batch_size=self.batch_size, collate_fn=self.collate)

    def collate(self, items):
        good = [item for item in items if item[1] not in self.unreadable]
        return {
            "index": torch.tensor([i for i, _ in good], dtype=torch.int64),
            "path": [p for _, p in good],
            "skipped": [{"path": p, "reason": "broken", "index": i} for i, p in items if p in self.unreadable],
        }


def predict(folder, module, data, **options):
    writer = PredictionWriter(str(folder), **options)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[writer],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=str(folder),
    )
    return trainer.predict(module, datamodule=data)


def lines(folder, name="predictions.rank0.jsonl"):
    return list(read_records(Path(folder) / name))


NAMES = [f"/photos/{name}.jpg" for name in ("cat", "dög", "a b/c?d", "cat", "x" * 300)]
NAMES[3] = "/other/cat.jpg"


def test_lines_come_in_order_with_the_images_they_name(tmp_path, capsys):
    module = Painter()
    assert predict(tmp_path, module, Paths(NAMES)) is None, "outputs must not pile up in memory"
    records = lines(tmp_path)
    assert [r["path"] for r in records] == NAMES
    assert [r["index"] for r in records] == [0, 1, 2, 3, 4]
    assert records[0]["images"] == {"mask": "images/000000_cat_mask.png", "overlay": "images/000000_cat_overlay.png"}
    assert records[1]["images"]["mask"] == "images/000001_dög_mask.png"
    for record in records:
        mask = cv2.imread(str(tmp_path / record["images"]["mask"]), cv2.IMREAD_UNCHANGED)
        overlay = cv2.imread(str(tmp_path / record["images"]["overlay"]))[..., ::-1]
        assert mask.shape == (8, 9)
        assert (mask == record["index"]).all()
        assert (overlay == (record["index"], 7, 9)).all()
    assert len(list((tmp_path / "images").iterdir())) == 10
    assert capsys.readouterr().out.strip() == f"predicted 5 images, skipped none: {tmp_path}"


@pytest.mark.parametrize(("choice", "files"), [(False, 0), (["mask"], 5), (True, 10)])
def test_only_the_images_asked_for_are_written(tmp_path, choice, files):
    predict(tmp_path, Painter(), Paths(NAMES), save_images=choice)
    assert len(list((tmp_path / "images").iterdir())) == files
    assert len(lines(tmp_path)) == 5


def test_colour_images_can_be_jpeg_while_masks_stay_exact(tmp_path):
    predict(tmp_path, Painter(), Paths(NAMES[:1]), image_format="jpg")
    assert {p.suffix for p in (tmp_path / "images").iterdir()} == {".png", ".jpg"}
    assert lines(tmp_path)[0]["images"]["mask"].endswith(".png")


def test_unreadable_inputs_are_listed_counted_and_tried_again(tmp_path, capsys):
    predict(tmp_path, Painter(), Paths(NAMES, unreadable=NAMES[1:3]))
    assert "predicted 3 images, skipped 2 unreadable" in capsys.readouterr().out
    assert [e["path"] for e in lines(tmp_path, "skipped.rank0.jsonl")] == NAMES[1:3]
    module = Painter()
    predict(tmp_path, module, Paths(NAMES, unreadable=NAMES[1:2]))
    assert module.seen == [2]
    assert [e["path"] for e in lines(tmp_path, "skipped.rank0.jsonl")] == NAMES[1:2]
    assert "predicted 4 images (3 of them by an earlier start), skipped 1" in capsys.readouterr().out


def test_a_second_start_goes_on_where_the_first_stopped(tmp_path):
    names = [f"/{i}.png" for i in range(20)]
    with pytest.raises(RuntimeError, match="killed here"):
        predict(tmp_path, Painter(die_at=13), Paths(names))
    done = [r["index"] for r in lines(tmp_path)]
    assert done == list(range(12))
    assert len(list((tmp_path / "images").iterdir())) == 24
    with (tmp_path / "predictions.rank0.jsonl").open("ab") as file:
        file.write(b'{"path": "/12.png", "ind')
    (tmp_path / "images" / "000012_12_mask.png.part").write_bytes(b"half")
    module = Painter()
    predict(tmp_path, module, Paths(names))
    assert module.seen == list(range(12, 20))
    assert [r["index"] for r in lines(tmp_path)] == list(range(20))
    assert not list(tmp_path.rglob("*.part"))
    third = Painter()
    predict(tmp_path, third, Paths(names))
    assert third.seen == []


def test_lines_of_ranks_that_are_gone_count_as_done(tmp_path):
    predict(tmp_path, Painter(), Paths(NAMES[:2]))
    (tmp_path / "predictions.rank0.jsonl").rename(tmp_path / "predictions.rank3.jsonl")
    module = Painter()
    predict(tmp_path, module, Paths(NAMES))
    assert module.seen == [2, 3, 4]


def test_an_input_added_later_does_not_take_the_images_of_another(tmp_path):
    predict(tmp_path, Painter(), Paths(["/a/cat.jpg"]))
    predict(tmp_path, Painter(), Paths(["/0/cat.jpg", "/a/cat.jpg"]))
    first, second = (record["images"]["mask"] for record in lines(tmp_path))
    assert first == "images/000000_cat_mask.png"
    assert second.startswith("images/000000_cat_")
    assert first != second
    assert (tmp_path / second).exists()


@pytest.mark.parametrize("everything_done", [False, True])
def test_predictions_of_two_models_are_not_mixed(tmp_path, everything_done):
    predict(tmp_path, Painter("a"), Paths(NAMES[:2]))
    before = (tmp_path / "predictions.rank0.jsonl").read_bytes()
    with pytest.raises(ValueError, match="another model") as error:
        predict(tmp_path, Painter("b"), Paths(NAMES[:2] if everything_done else NAMES))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert (tmp_path / "predictions.rank0.jsonl").read_bytes() == before


def test_lines_without_a_fingerprint_are_not_trusted(tmp_path):
    predict(tmp_path, Painter(), Paths(NAMES[:2]))
    (tmp_path / "predictions.json").unlink()
    with pytest.raises(ValueError, match="another model"):
        predict(tmp_path, Painter(), Paths(NAMES))


def test_the_fingerprint_falls_back_on_the_hyper_parameters(tmp_path):
    class Plain(lightning.LightningModule):
        def __init__(self, width):
            super().__init__()
            self.save_hyperparameters()

        def predict_step(self, batch, batch_idx):
            return {"records": [{"path": p, "index": 0} for p in batch["path"]]}

    predict(tmp_path, Plain(1), Paths(NAMES[:1]))
    predict(tmp_path, Plain(1), Paths(NAMES[:2]))
    with pytest.raises(ValueError, match="another model"):
        predict(tmp_path, Plain(2), Paths(NAMES))


def test_a_second_predict_at_one_time_is_refused_and_harms_nothing(tmp_path):
    class Nested(Painter):
        def predict_step(self, batch, batch_idx):
            if batch_idx == 1:
                (tmp_path / "images" / "being_written.png.part").write_bytes(b"half")
                with pytest.raises(ValueError, match="another predict is writing to") as error:
                    predict(tmp_path, Painter(), Paths(NAMES))
                assert str(tmp_path) in str(error.value)
                assert "--predictions.output_dir" in str(error.value)
                assert "\n" not in str(error.value)
                assert (tmp_path / "images" / "being_written.png.part").exists()
            return super().predict_step(batch, batch_idx)

    predict(tmp_path, Nested(), Paths(NAMES))
    assert [r["index"] for r in lines(tmp_path)] == [0, 1, 2, 3, 4]
    module = Painter()
    predict(tmp_path, module, Paths([*NAMES, "/new.png"]))
    assert module.seen == [5], "the lock is released at the end"


def test_a_rank_that_outlived_its_run_keeps_others_out(tmp_path):
    orphan = FolderLock()
    assert orphan.take(tmp_path, 1)
    with pytest.raises(ValueError, match="another predict is writing to"):
        predict(tmp_path, Painter(), Paths(NAMES))
    orphan.release()
    predict(tmp_path, Painter(), Paths(NAMES))
    assert len(lines(tmp_path)) == 5


def test_a_killed_run_leaves_no_lock_although_its_worker_lives(tmp_path):
    program = """
import os, sys, time
from pathlib import Path
from callbacks.prediction_files import FolderLock
lock = FolderLock()
assert lock.take(Path(sys.argv[1]), 0)
if not os.fork():
    print(os.getpid(), flush=True)
time.sleep(60)
"""
    root = Path(__file__).resolve().parents[2]
    run = subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=root, stdout=subprocess.PIPE, text=True)
    worker = int(run.stdout.readline())
    lock = FolderLock()
    try:
        assert not lock.take(tmp_path, 0)
        run.kill()
        run.wait()
        assert lock.take(tmp_path, 0)
        lock.release()
    finally:
        run.kill()
        os.kill(worker, 9)
        run.stdout.close()


@pytest.mark.parametrize(("code", "goes_on"), [(errno.ENOTSUP, True), (errno.ENOLCK, True), (errno.EIO, False)])
def test_a_file_system_without_locks_is_written_to_without(tmp_path, monkeypatch, code, goes_on):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    if goes_on:
        predict(tmp_path, Painter(), Paths(NAMES))
        assert len(lines(tmp_path)) == 5
    else:
        with pytest.raises(OSError, match=r"cannot write .*\.lock\.rank0"):
            predict(tmp_path, Painter(), Paths(NAMES))


def full_after(monkeypatch, budget, victim):
    """Let `os.write` accept `budget` bytes in files whose descriptor's name holds `victim`."""
    real, left = os.write, [budget]

    def write(file, data):
        if victim not in os.readlink(f"/proc/self/fd/{file}"):
            return real(file, data)
        if left[0] < len(data):
            real(file, bytes(data)[: left[0]])
            left[0] = 0
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(data)
        return real(file, data)

    monkeypatch.setattr(prediction_files.os, "write", write)


@pytest.mark.parametrize(("budget", "victim"), [(700, ".png"), (900, "predictions.rank0"), (100, "skipped.rank0")])
def test_a_full_disk_ends_the_run_with_a_line_and_a_later_start_goes_on(tmp_path, monkeypatch, budget, victim):
    names = [f"/{i}.png" for i in range(30)]
    bad = [names[3], names[11]]
    with monkeypatch.context() as patch:
        full_after(patch, budget, victim)
        with pytest.raises(OSError, match="no space left to write") as error:
            predict(tmp_path, Painter(), Paths(names, bad))
    assert victim in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.errno == errno.ENOSPC
    done = lines(tmp_path)
    assert len(done) < 28
    assert complete_size(tmp_path / "predictions.rank0.jsonl") == (tmp_path / "predictions.rank0.jsonl").stat().st_size
    assert not list(tmp_path.rglob("*.part"))
    listed = {name for record in done for name in record["images"].values()}
    assert listed == {f"images/{p.name}" for p in (tmp_path / "images").iterdir()}
    module = Painter()
    predict(tmp_path, module, Paths(names))
    assert sorted(r["index"] for r in lines(tmp_path)) == list(range(30))
    assert len(module.seen) == 30 - len(done)


def test_a_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        names = [f"/{i}.png" for i in range(200)]
        with pytest.raises(OSError, match="no space left to write"):
            predict(disk / "out", Painter(side=64), Paths(names))
        done = len(lines(disk / "out"))
        assert 10 < done < 200
        assert not list(disk.rglob("*.part"))
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        predict(disk / "out", Painter(side=64), Paths(names))
        assert [r["index"] for r in lines(disk / "out")] == list(range(200))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write") as error:
        predict(tmp_path / "file" / "out", Painter(), Paths(NAMES))
    assert str(tmp_path / "file" / "out") in str(error.value)


def test_memory_does_not_grow_with_the_number_of_inputs(tmp_path):
    writer = PredictionWriter(str(tmp_path), save_images=False)
    module, trainer = Painter(), lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    writer._folder = tmp_path
    writer.on_predict_start(trainer, module)

    def step(i):
        records = [{"path": f"/{i}.png", "index": i, "boxes": [[0, 0, 1, 1]] * 10}]
        writer.on_predict_batch_end(trainer, module, {"records": records, "images": [{}]}, {"skipped": []}, i)

    for i in range(500):
        step(i)
    tracemalloc.start()
    before, rss = tracemalloc.get_traced_memory()[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(500, 20_500):
        step(i)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    writer.on_predict_end(trainer, module)
    assert grown < 100_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss < 20_000
    assert sum(1 for _ in read_records(tmp_path / "predictions.rank0.jsonl")) == 20_500


def test_the_indices_of_batches_that_are_done_are_forgotten(tmp_path, monkeypatch):
    noted = []
    real = PredictionWriter.on_predict_batch_end

    def spy(self, trainer, *args):
        real(self, trainer, *args)
        noted.append(len(trainer.predict_dataloaders.batch_sampler.seen_batch_indices))

    monkeypatch.setattr(PredictionWriter, "on_predict_batch_end", spy)
    predict(tmp_path / "out", Painter(), Paths([f"/{i}.png" for i in range(40)]))
    assert len(noted) >= 10
    assert max(noted) <= 3


def test_images_waiting_to_be_written_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("callbacks.prediction_writers._PENDING_BYTES", 1000)
    waiting = []
    real = PredictionWriter.on_predict_batch_end

    def spy(self, *args):
        real(self, *args)
        waiting.append(self._session.pending_bytes)

    monkeypatch.setattr(PredictionWriter, "on_predict_batch_end", spy)
    predict(tmp_path, Painter(), Paths([f"/{i}.png" for i in range(40)]))
    assert max(waiting) <= 1000
    assert len(lines(tmp_path)) == 40


def test_it_leaves_other_stages_alone(tmp_path):
    writer = PredictionWriter(str(tmp_path / "never"))
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    writer.setup(trainer, Painter(), "fit")
    writer.teardown(trainer, Painter(), "fit")
    assert not (tmp_path / "never").exists()


def test_json_lines_hold_complete_lines_only(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"z" * 200_000)
    log = JsonLines(path)
    log.append({"a": 2})
    log.close()
    assert list(read_records(path)) == [{"a": 1}, {"a": 2}]
    assert complete_size(tmp_path / "absent") == 0


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2, is not JSON"):
        list(read_records(path))


def test_prefixes_are_file_names_whatever_the_input_is_called():
    for path in ("/x/..", "/x/" + "字" * 300 + ".png", "s3://b/a?x=1&y", "/x/\udcff.png", "/x/a\nb.png"):
        name = image_prefix({"path": path, "index": 7}).removeprefix("images/")
        assert name.startswith("000007_")
        assert "/" not in name
        assert len(name.encode()) < 200
