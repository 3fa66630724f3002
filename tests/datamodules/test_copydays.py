"""Copydays' 20 blocks: which original each image was made from, and what is said of folders that are not whole."""

import numpy as np
import pytest
from PIL import Image

from datamodules.copydays import BLOCKS, CopydaysDataModule, block_matches, list_blocks


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Every file one tiny image; strong copies of the first 72 originals have two, the others one."""
    root = tmp_path_factory.mktemp("copydays")
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(root / "one.jpg")
    for block, count in BLOCKS.items():
        (root / block).mkdir(parents=True)
        originals = [f"{2000 + i}00" for i in range(157)]
        strong = [f"{2000 + i}{k:02d}" for i in range(157) for k in ((1, 2) if i < 72 else (1,))]
        for stem in strong if block == "strong" else originals:
            (root / block / f"{stem}.jpg").hardlink_to(root / "one.jpg")
        assert len(list((root / block).iterdir())) == count
    return root


def test_every_image_looks_for_its_original(root, tmp_path):
    data = CopydaysDataModule(str(root), distractors="procedural://5?size=16", background="procedural://4?size=16")
    data.setup("test")
    task = data.retrieval_task("test")
    assert task.role.tolist() == [0] * 162 + [1] * 3212 + [2] * 4
    assert len(task.pairs) == 3212
    assert list(task.groups) == list(BLOCKS)
    assert np.concatenate(list(task.groups.values())).tolist() == list(range(162, 162 + 3212))
    for query, reference in task.pairs.tolist():
        block, stem = task.names[query].rsplit("/", 1)
        assert task.names[reference][:4] == stem[:4]
        assert query in range(task.groups[block][0], task.groups[block][-1] + 1)
    assert task.names[162] == "original/200000"
    data.setup("validate")
    assert len(data.datasets["val"]) == 162 + 3212, "validation learns nothing and needs no background"


def test_folders_that_are_not_whole_are_named(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"157 \.jpg files in .*original, found 0: set data.root"):
        CopydaysDataModule(str(tmp_path)).setup("test")
    blocks = list_blocks(root)
    assert len(block_matches(blocks)) == 3212
    blocks["strong"] = [blocks["strong"][0].with_name("999901.jpg"), *blocks["strong"][1:]]
    with pytest.raises(ValueError, match="is a copy of no original: none has a name that begins with 9999"):
        block_matches(blocks)
