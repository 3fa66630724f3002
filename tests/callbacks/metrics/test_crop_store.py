"""Pictures that are kept: bytes, middles, each sample once, over processes."""

from types import SimpleNamespace

import numpy as np
import torch

from callbacks.metrics.crop_store import CropStore

ALONE = SimpleNamespace(world_size=1)


def filled(store, numbers, value=0.0):
    pictures = torch.stack([torch.full((3, 6, 8), value + number / 255) for number in numbers])
    store.add(torch.tensor(numbers), [f"g{number}" for number in numbers], {"a": pictures})


def test_the_middle_is_kept_at_its_own_scale_as_bytes():
    store = CropStore(("a",), 5, 4)
    picture = torch.arange(3 * 6 * 8).reshape(1, 3, 6, 8) / 255 + 0.001
    store.add(torch.tensor([7]), ["g"], {"a": picture})
    index, groups, crops = store.gathered(ALONE)
    assert index.tolist() == [7]
    assert groups == ["g"]
    assert np.array_equal(crops["a"][0], (torch.arange(3 * 6 * 8).reshape(3, 6, 8))[:, 1:5, 2:6].numpy())


def test_each_sample_is_kept_once_and_no_more_than_asked():
    store = CropStore(("a",), 3, 8)
    filled(store, [4, 2])
    filled(store, [2, 9, 11], value=0.5)
    index, groups, crops = store.gathered(ALONE)
    assert index.tolist() == [2, 4, 9]
    assert groups == ["g2", "g4", "g9"]
    assert crops["a"][0, 0, 0, 0] == 2, "the first picture of a sample counts"


def test_samples_of_all_processes_are_merged(monkeypatch):
    other = CropStore(("a",), 9, 8)
    filled(other, [3, 1], value=0.5)
    store = CropStore(("a",), 9, 8)
    filled(store, [0, 1])

    def gather(parts, mine):
        parts[:] = [mine, other._kept]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    index, groups, crops = store.gathered(SimpleNamespace(world_size=2))
    assert index.tolist() == [0, 1, 3]
    assert groups == ["g0", "g1", "g3"]
    assert crops["a"][1, 0, 0, 0] == 1, "of a sample that was dealt twice the first process's is kept"
