"""Sets of seals on disk: what is read is what was drawn; the layouts of public sets."""

import json

import cv2
import numpy as np
import pytest

from datamodules.images.errors import UnreadableImageError
from datamodules.seal_sets import PLANES, annotations_of, masked_pictures, read_seal_set, rest_seals, seal_of
from datamodules.transforms.documents.samples import DocumentSettings, draw_document
from experiments.prepare_seals import Plan, finish, make_chunk

SMALL = DocumentSettings(size=96, sheets=3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    plan = Plan(5, 2, SMALL)
    for plane in (*PLANES, ".parts"):
        (folder / plane).mkdir()
    make_chunk(plan, folder, 0)
    finish(plan, folder)
    return folder


def test_a_written_document_is_the_drawn_one(written):
    documents = read_seal_set(written)
    assert len(documents) == 5
    for index in range(5):
        read, drawn = documents[index], draw_document(2, index, SMALL)
        for name in ("image", "page", "ink", "visible", "area"):
            np.testing.assert_array_equal(getattr(read, name), getattr(drawn, name))
        np.testing.assert_allclose(read.alpha, drawn.alpha, atol=0.5 / 255 + 1e-6)
        assert read.alpha.dtype == np.float32
        assert [line.text for line in read.page_lines] == [line.text for line in drawn.page_lines]
        assert [line.under_seal for line in read.page_lines] == [line.under_seal for line in drawn.page_lines]
        for one, other in zip(read.seals, drawn.seals, strict=True):
            assert (one.kind, one.color, one.box_xyxy) == (other.kind, other.color, other.box_xyxy)
            np.testing.assert_allclose(one.outline, other.outline, atol=0.006)
            for line, wanted in zip(one.lines, other.lines, strict=True):
                assert (line.text, line.role, line.legible) == (wanted.text, wanted.role, wanted.legible)
                np.testing.assert_allclose(line.polygon, wanted.polygon, atol=0.006)
        assert documents.path(index) == read.path
        assert read.capture == drawn.capture
    with pytest.raises(IndexError):
        documents[5]


def test_annotations_are_cocos(written):
    coco = json.loads((written / "annotations.json").read_text())
    assert set(coco) == {"info", "categories", "images", "annotations"}
    names = {row["id"]: row["name"] for row in coco["categories"]}
    assert len({row["id"] for row in coco["annotations"]}) == len(coco["annotations"])
    for row in coco["annotations"]:
        area = cv2.imread(str(written / coco["images"][row["image_id"]]["file_name"].replace("images", "area")), 0) > 0
        polygon = np.array(row["segmentation"][0], np.float32).reshape(-1, 2)
        x, y, wide, high = row["bbox"]
        assert names[row["category_id"]] in ("round", "oval", "square", "triangular")
        assert area[int(y) : int(y + high), int(x) : int(x + wide)].any()
        np.testing.assert_allclose(polygon.min(axis=0), (x, y), atol=1.5)
        np.testing.assert_allclose(polygon.max(axis=0), (x + wide, y + high), atol=1.5)
        assert row["area"] == pytest.approx(cv2.contourArea(polygon), abs=0.6)
        assert row["area"] <= wide * high * 1.1


def test_a_seal_survives_its_annotation():
    seals = draw_document(3, 1, DocumentSettings(size=128, sheets=2)).seals
    rows = annotations_of(draw_document(3, 1, DocumentSettings(size=128, sheets=2)))
    for seal, row in zip(seals, rows, strict=True):
        again = seal_of(json.loads(json.dumps(row)))
        assert (again.kind, again.color, again.box_xyxy) == (seal.kind, seal.color, seal.box_xyxy)


def test_text_rows_name_their_image(written):
    rows = [json.loads(line) for line in (written / "text.jsonl").read_text().splitlines()]
    assert {row["source"] for row in rows} == {"page", "seal"}
    documents = read_seal_set(written)
    assert sum(len(documents.text(index)) for index in range(5)) == len(rows)
    assert all("image" not in row for row in documents.text(0))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("annotations.json", "{", "cannot be read"),
        ("annotations.json", "{}", "'images' is missing"),
        ("text.jsonl", "{}\n", "line 1"),
    ],
)
def test_damaged_labels_are_told_in_one_line(tmp_path, name, content, told):
    (tmp_path / "annotations.json").write_text('{"images": [], "annotations": []}')
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=told) as caught:
        read_seal_set(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_set_without_planes_or_pictures_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare seals"):
        read_seal_set(tmp_path)
    (tmp_path / "annotations.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(FileNotFoundError, match="no folder images"):
        read_seal_set(tmp_path)


def write_pair(folder, image, mask, end, shape=(20, 30), ink=255):
    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    cv2.imwrite(str(folder / "images" / f"{image}.png"), np.full((20, 30, 3), 200, np.uint8))
    pixels = np.full(shape, 255 - ink, np.uint8)
    pixels[5:8, 5:9] = ink
    cv2.imwrite(str(folder / "masks" / f"{mask}{end}.png"), pixels)
    return folder / "images", folder / "masks"


@pytest.mark.parametrize("end", ["", "-gt", "_mask", "-px"])
@pytest.mark.parametrize("ink", [0, 255])
def test_pictures_find_their_masks_whichever_tone_is_ink(tmp_path, end, ink):
    (pair,) = masked_pictures(*write_pair(tmp_path, "stamp-1", "stamp-1", end, ink=ink))
    image, mask = pair.read()
    assert image.shape == (20, 30, 3)
    assert mask.sum() == 12
    assert mask[5:8, 5:9].all()


def test_pictures_without_a_fitting_mask_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no mask"):
        masked_pictures(*write_pair(tmp_path, "a", "b", ""))
    other = tmp_path / "other"
    other.mkdir()
    (pair,) = masked_pictures(*write_pair(other, "a", "a", "", shape=(20, 31)))
    with pytest.raises(UnreadableImageError, match="is not the size"):
        pair.read()


def test_rest_is_read_with_its_text(tmp_path):
    cv2.imwrite(str(tmp_path / "train_7.png"), np.zeros((20, 30, 3), np.uint8))
    labels = tmp_path / "train.json"
    line = {"points": [[1, 2], [9, 2], [9, 5], [1, 5]], "transcription": "江南商贸有限公司"}
    labels.write_text(json.dumps({"gt_7": [line]}, ensure_ascii=False), encoding="utf-8")
    (seal,) = rest_seals(labels, tmp_path)
    assert seal.path.endswith("train_7.png")
    ((text, polygon),) = seal.lines
    assert text == "江南商贸有限公司"
    np.testing.assert_array_equal(polygon, line["points"])
    labels.write_text(json.dumps({"gt_8": [line]}))
    with pytest.raises(FileNotFoundError, match="gt_8"):
        list(rest_seals(labels, tmp_path))
    labels.write_text(json.dumps({"gt_7": [{"points": [[1, 2]]}]}))
    with pytest.raises(ValueError, match="gt_7"):
        list(rest_seals(labels, tmp_path))
