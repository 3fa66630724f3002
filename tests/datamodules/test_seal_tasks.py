"""The three tasks: what samples hold, where they come from, and that the modules take them."""

import json

import cv2
import numpy as np
import pytest
import torch

from datamodules.base import SampleKey, collate_samples
from datamodules.seal_sets import CATEGORIES, annotations_of, file_of, planes_of, text_of
from datamodules.seal_task_samples import LineCutter, PageCutter, PartStore, seal_crops
from datamodules.seal_tasks import (
    SealReadingDataModule,
    SealSegmentationDataModule,
    SealVerificationDataModule,
)
from datamodules.transforms.documents.samples import DocumentSettings, draw_document
from datamodules.transforms.line_crops import line_width
from datamodules.transforms.recut import GENUINE, RecutSettings, Registration, specimen
from lightning_modules.functional.pixels import to_unit

SMALL = DocumentSettings(size=160, sheets=4)
MODULES = {
    "segmentation": lambda **options: SealSegmentationDataModule(size=64, **options),
    "verification": lambda **options: SealVerificationDataModule(size=48, **options),
    "reading": lambda **options: SealReadingDataModule(width=320, **options),
}
OPTIONS = {"train_samples": 40, "val_samples": 6, "test_samples": 6, "num_workers": 0, "seed": 3, "document": SMALL}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Ten documents in the layout of `sealmark prepare seals`."""
    folder = tmp_path_factory.mktemp("set")
    images, annotations, text = [], [], []
    for index in range(10):
        document = draw_document(9, index, SMALL)
        for plane, pixels in planes_of(document).items():
            (folder / plane).mkdir(exist_ok=True)
            stored = pixels[..., ::-1] if pixels.ndim == 3 else pixels
            cv2.imwrite(str(folder / file_of(index, plane)), stored)
        images.append({"id": index, "file_name": file_of(index)})
        annotations += [row | {"id": len(annotations), "image_id": index} for row in annotations_of(document)]
        text += [row | {"image": file_of(index)} for row in text_of(document)]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "text.jsonl").write_text("\n".join(json.dumps(row) for row in text))
    return folder


def built(task, *stages, **options):
    module = MODULES[task](**(OPTIONS | options))
    for stage in stages or ("fit", "test"):
        module.setup(stage)
    return module


def equal(first, second):
    return all(
        torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else str(value) == str(second[key])
        for key, value in first.items()
    )


@pytest.mark.parametrize("task", MODULES)
def test_a_sample_is_the_same_whenever_it_is_made_and_splits_differ(task):
    data, again = built(task), built(task)
    first = data.datasets["train"][SampleKey(2, 5)]
    data.datasets["train"][SampleKey(0, 1)]
    assert equal(first, again.datasets["train"][SampleKey(2, 5)])
    assert not equal(first, data.datasets["train"][SampleKey(3, 5)])
    names = {split: data.datasets[split].store.documents.name for split in ("train", "val", "test")}
    assert len(set(names.values())) == 3
    other = built(task, seed=4)
    assert equal(data.datasets["val"][SampleKey(0, 1)], other.datasets["val"][SampleKey(0, 1)]), "frozen"


def test_windows_are_pieces_of_a_document_and_its_mask():
    data = built("segmentation", train="clean", on_ink=1.0)
    dataset = data.datasets["train"]
    for index in range(6):
        sample = dataset[SampleKey(0, index)]
        document = dataset.store.documents.read(index)
        image, mask = sample["image"].numpy().transpose(1, 2, 0), sample["mask"][0].numpy() > 0
        pieces = []
        for side in (1, -1):
            found = cv2.matchTemplate(document.image, image[:, ::side].copy(), cv2.TM_SQDIFF)
            top, left = np.unravel_index(int(found.argmin()), found.shape)
            window = (slice(top, top + 64), slice(left, left + 64))
            if np.array_equal(document.image[window][:, ::side], image):
                pieces.append(document.visible[window][:, ::side])
        assert any(np.array_equal(piece, mask) for piece in pieces)
        assert sample["has_mark"] == mask.any()
        assert sample["family"] != "clean"
        assert 0 < sample["opacity"] <= 1


def test_documents_without_seals_are_clean():
    bare = DocumentSettings(size=160, sheets=4, seals=(0, 0))
    sample = built("segmentation", document=bare).datasets["train"][SampleKey(0, 0)]
    assert sample["family"] == "clean"
    assert not sample["mask"].any()
    assert np.isnan(sample["opacity"])
    document = draw_document(0, 0, SMALL)
    (page,) = PageCutter("area", 2.0)(document)
    assert page.mask.shape == (80, 80)
    assert page.mask.sum() * 4 == pytest.approx(document.area.sum(), rel=0.05)


def test_pairs_are_genuine_in_turn_and_specimens_show_it():
    laid_exactly = RecutSettings(turn_deg=0, shift=0, scale=0)
    dataset = built("verification", train="clean", recut=laid_exactly).datasets["train"]
    for index in range(8):
        sample = dataset[SampleKey(0, index)]
        assert sample["authentic"] == (index % 2 == 0)
        drawn = sample["reference"][0].numpy()
        parts, _ = dataset.store.parts(index)
        true = [specimen(part.ink, part.area, part.axis, GENUINE, Registration(), 48) for part in parts]
        assert sample["authentic"] == any(np.array_equal(drawn, other) for other in true)
        density = 1 - sample["image"].float().mean(0).numpy() / 255
        near = cv2.dilate(density, np.ones((5, 5))) > 0.15
        assert near[drawn > 127].mean() > 0.75, "the specimen lies over the impression"


def test_cut_and_overlapping_seals_are_left_out():
    settings = DocumentSettings(size=160, sheets=4, seals=(2, 2))
    found = [seal_crops(draw_document(1, index, settings)) for index in range(20)]
    for index, crops in enumerate(found):
        seals = draw_document(1, index, settings).seals
        boxes = [seal.box_xyxy for seal in seals]
        apart = len(boxes) < 2 or not (
            boxes[0][0] < boxes[1][2]
            and boxes[1][0] < boxes[0][2]
            and boxes[0][1] < boxes[1][3]
            and boxes[1][1] < boxes[0][3]
        )
        if not apart:
            assert not crops
        assert len(crops) <= len(seals)
    assert any(found)


def test_lines_are_those_that_lie_under_seals_and_fit():
    data = built("reading")
    for split in ("train", "test"):
        dataset = data.datasets[split]
        for index in range(5):
            sample = dataset[SampleKey(0, index)]
            assert sample["image"].shape == (3, 24, 320)
            number = int(sample["path"].rpartition("#")[2])
            lines = [
                line
                for line in dataset.store.documents.read(number).page_lines
                if line.text == sample["text"] and line_width(line.polygon, 24) == sample["width"]
            ]
            assert lines
            assert sample["width"] <= 320
            assert split == "train" or any(line.under_seal for line in lines)


@pytest.mark.parametrize("task", MODULES)
def test_written_sets_give_what_was_drawn(task, written):
    data = built(task, train=str(written), test=str(written), holdout=0.5)
    places = {split: set(data.datasets[split].store.documents.positions) for split in ("train", "val", "test")}
    assert not places["train"] & (places["val"] | places["test"])
    assert set().union(*places.values()) == set(range(10))
    elsewhere = built(task, "test", train="clean", test=str(written))
    documents = elsewhere.datasets["test"].store.documents
    assert len(documents) == 10
    assert np.array_equal(documents.read(3).image, draw_document(9, 3, SMALL).image)
    sample = data.datasets["train"][SampleKey(0, 0)]
    assert equal(sample, data.datasets["train"][SampleKey(0, 0)]), "kept parts are not changed"


def test_parts_are_cut_once_and_an_empty_source_is_named():
    class Counted:
        name = "a source"

        def __init__(self):
            self.read_ones = []

        def __len__(self):
            return 6

        def read(self, position):
            self.read_ones.append(position)
            return position

    counted = Counted()
    store = PartStore(counted, lambda document: [document] if document >= 4 else [], keep=10)
    assert [store.parts(1), store.parts(5), store.parts(2)] == [([4], 4), ([5], 5), ([4], 4)]
    assert counted.read_ones == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="50 documents of a source have nothing for this task"):
        PartStore(Counted(), lambda document: [], keep=0).parts(0)


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda: built("reading", test="/nowhere/set"), FileNotFoundError, "/nowhere/set"),
        (lambda: built("reading", "predict"), ValueError, "trains and tests"),
        (lambda: SealVerificationDataModule(size=16), ValueError, "at least 32"),
        (lambda: SealSegmentationDataModule(reduce=0), ValueError, "data.reduce"),
        (
            lambda: built("segmentation", document=DocumentSettings(size=48)).datasets["train"][SampleKey(0, 0)],
            ValueError,
            "lower data.size",
        ),
    ],
)
def test_mistakes_are_one_line(make, error, told):
    with pytest.raises(error, match=told) as caught:
        make()
    assert "\n" not in str(caught.value)


def batch_of(data, count=2):
    samples = collate_samples([data.datasets["train"][SampleKey(0, index)] for index in range(count)])
    return {key: to_unit(value) if isinstance(value, torch.Tensor) else value for key, value in samples.items()}


def test_modules_take_the_batches(monkeypatch):
    from lightning_modules.seal2real.reader import SealReaderModule
    from lightning_modules.seal2real.verifier import SealVerifierModule
    from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule

    segmenter = WatermarkSegmentationModule(encoder="tu-mobilenetv3_small_050", decoder_channels=[16, 12, 8, 8, 4])
    for task, module in (
        ("segmentation", segmenter),
        ("verification", SealVerifierModule(width=4)),
        ("reading", SealReaderModule(width=4)),
    ):
        monkeypatch.setattr(module, "log", lambda *words, **options: None)
        batch = batch_of(built(task, "fit"))
        module.training_step(batch, 0).backward()
        assert set(module.eval().validation_step(batch, 0)) >= {"index"}


def test_long_lines_are_left_out():
    document = draw_document(0, 0, SMALL)
    widths = [line_width(line.polygon, 24) for line in document.page_lines]
    found = LineCutter(24, sorted(widths)[len(widths) // 2], under_seals=False)(document)
    assert len(found) == sum(width <= sorted(widths)[len(widths) // 2] for width in widths)
    assert all(line.image.shape[0] == 24 for line in found)
