"""A realised set holds new pictures and old labels, in the layout that seal sets are read in."""

import json

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from callbacks.prediction_writers import PredictionWriter
from callbacks.realised_figures import RealisedFigures
from callbacks.realised_sets import RealisedSet, contact_sheet, join_labels
from datamodules.seal_documents import SealDocumentsDataModule
from datamodules.seal_sets import PLANES, annotations_of, planes_of, read_seal_set, text_of
from datamodules.transforms.documents.samples import DocumentSettings, draw_document


class Darker(LightningModule):
    """Takes a level from each ink pixel of a document."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.fail_at = fail_at

    def predict_step(self, batch, batch_idx):
        if batch_idx == self.fail_at:
            raise KeyboardInterrupt
        records, pictures = [], []
        for image, ink, boxes, index, path in zip(
            batch["image"], batch["ink"], batch["boxes"], batch["index"].tolist(), batch["path"], strict=True
        ):
            made = torch.where(ink > 0, image.clamp(min=1) - 1, image).permute(1, 2, 0).numpy()
            height, width = made.shape[:2]
            about = {"path": path, "index": index, "width": width, "height": height, "boxes": boxes.tolist()}
            records.append(about | {"changed_outside": 0})
            pictures.append({"realised": made})
        return {"records": records, "images": pictures}


def predict(folder, data, module=None, **settings):
    callbacks = [RealisedSet(**settings), PredictionWriter(str(folder / "predictions"))]
    run = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    run.predict(module or Darker(), data)
    return folder / "predictions" / "realised"


def drawn(count=3, **settings):
    size = DocumentSettings(size=128)
    return SealDocumentsDataModule(settings=size, predict_samples=count, batch_size=1, num_workers=0, **settings)


def test_labels_are_taken_over_and_pictures_are_new(tmp_path, capsys):
    data = drawn()
    folder = predict(tmp_path, data)
    realised = read_seal_set(folder)
    assert len(realised) == 3
    for index in range(3):
        planes, boxes, labels = data._predicted.documents.record(index)
        assert realised.annotations(index) == json.loads(json.dumps(labels["annotations"]))
        assert realised.text(index) == json.loads(json.dumps(labels["text"]))
        for plane in PLANES[1:]:
            assert np.array_equal(realised.plane(index, plane), planes[plane]), plane
        change = planes["images"].astype(int) - realised.plane(index, "images")
        on = planes["ink"] > 0
        assert (change[~on] == 0).all()
        assert (change[on] == (planes["images"][on] > 0)).all()
        assert len(boxes) == len(realised[index].seals)
    about = json.loads((folder / "manifest.json").read_text())
    assert about["count"] == 3
    assert about["pixels_changed_outside"] == 0


def test_a_written_set_is_realised_like_a_drawn_one(tmp_path):
    source = tmp_path / "set"
    (source / "images").mkdir(parents=True)
    images, annotations, rows = [], [], []
    for index in range(2):
        document = draw_document(0, index, DocumentSettings(size=96, domain="clean"))
        for plane, pixels in planes_of(document).items():
            (source / plane).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(source / plane / f"{index:06d}.png")
        name = f"images/{index:06d}.png"
        images.append({"id": index, "file_name": name, "width": 96, "height": 96})
        annotations += [{"id": len(annotations), "image_id": index, **each} for each in annotations_of(document)]
        rows += [json.dumps({"image": name, **row}) for row in text_of(document)]
    coco = {"images": images, "annotations": annotations, "categories": []}
    (source / "annotations.json").write_text(json.dumps(coco))
    (source / "text.jsonl").write_text("\n".join(rows) + "\n")
    before, after = read_seal_set(source), read_seal_set(predict(tmp_path, drawn(paths=str(source))))
    assert len(after) == 2
    for index in range(2):
        assert after.annotations(index) == before.annotations(index)
        assert after.text(index) == before.text(index)
        assert np.array_equal(after[index].ink, before[index].ink)


def test_a_killed_run_goes_on_to_the_same_set(tmp_path):
    whole = predict(tmp_path / "whole", drawn(4))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        predict(tmp_path / "broken", drawn(4), Darker(fail_at=2))
    left = tmp_path / "broken" / "predictions" / "realised"
    assert len(list(left.glob("images/*.png"))) == 2
    predict(tmp_path / "broken", drawn(4))
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
    for name in names:
        if name not in ("contact.png", "manifest.json") and not name.startswith("labels"):
            assert (left / name).read_bytes() == (whole / name).read_bytes(), name
    assert json.loads((left / "manifest.json").read_text())["count"] == 4


def test_a_start_with_nothing_left_still_joins_the_labels(tmp_path):
    folder = predict(tmp_path, drawn(2))
    (folder / "annotations.json").unlink()
    predict(tmp_path, drawn(2))
    assert len(read_seal_set(folder)) == 2


def test_pictures_without_labels_give_what_there_is(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("pictures", "masks"):
        (tmp_path / folder).mkdir()
    ink = np.zeros((60, 80), np.uint8)
    ink[20:40, 30:50] = 255
    Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).save(tmp_path / "pictures" / "a.png")
    Image.fromarray(ink).save(tmp_path / "masks" / "a.png")
    data = drawn(paths=str(tmp_path / "pictures"), masks=str(tmp_path / "masks"))
    folder = predict(tmp_path, data)
    assert np.array_equal(np.asarray(Image.open(folder / "ink" / "000000.png")), ink)
    assert not (folder / "pages").exists()
    assert json.loads((folder / "annotations.json").read_text())["images"][0]["source"].endswith("a.png")
    assert (folder / "contact.png").is_file()


def test_a_document_written_twice_counts_once(tmp_path):
    line = {"path": "a", "file_name": "images/000000.png", "width": 4, "height": 5, "annotations": [{"bbox": [0]}]}
    (tmp_path / "labels.rank0.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line) + "\n")
    join_labels(tmp_path, "x")
    coco = json.loads((tmp_path / "annotations.json").read_text())
    assert len(coco["images"]) == 1
    assert coco["annotations"] == [{"id": 0, "image_id": 0, "bbox": [0]}]


def test_the_contact_sheet_shows_pairs_in_rows():
    pairs = [(np.full((40, 40, 3), level, np.uint8), np.full((40, 40, 3), level + 1, np.uint8)) for level in range(6)]
    sheet = contact_sheet(pairs)
    seen = {int(value) for value in np.unique(sheet[30:])}
    assert {0, 1, 2, 3, 4, 5, 6} <= seen
    assert sheet.shape[1] > 4 * sheet.shape[0] / 2


def test_a_module_that_makes_nothing_real_is_refused(tmp_path):
    class Mute(Darker):
        def predict_step(self, batch, batch_idx):
            outputs = super().predict_step(batch, batch_idx)
            return outputs | {"images": [{} for _ in outputs["images"]]}

    with pytest.raises(ValueError, match="Mute gives none"):
        predict(tmp_path, drawn(1), Mute())
    with pytest.raises(ValueError, match="contact"):
        RealisedSet(contact=-1)


def test_figures_show_the_change_around_grey():
    outputs = {"image": torch.full((1, 3, 8, 8), 0.5), "realised": torch.full((1, 3, 8, 8), 0.75)}
    outputs["real"] = torch.zeros(1, 3, 8, 8)
    drawn_, made, change, real = RealisedFigures().row(None, outputs, 0)
    assert (drawn_[0, 0, 0], made[0, 0, 0], change[0, 0, 0], real[0, 0, 0]) == (128, 191, 191, 0)
