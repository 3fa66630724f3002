"""Descriptors come back from disk by index, each once, whatever process wrote them."""

import numpy as np
import pytest

from callbacks.descriptor_store import DescriptorWriter, StoredDescriptors


@pytest.mark.parametrize("ranks", [1, 2, 11])
def test_rows_come_back_by_index(tmp_path, ranks):
    rng = np.random.default_rng(ranks)
    rows = rng.standard_normal((50, 6)).astype(np.float32)
    dealt = np.arange(0, 50)[rng.permutation(50)][:47]  # three were skipped
    dealt = np.concatenate([dealt, dealt[: (-len(dealt)) % ranks]])  # and some are dealt twice to fill the ranks
    for rank in range(ranks):
        writer = DescriptorWriter(tmp_path, rank)
        own = dealt[rank::ranks]
        for start in range(0, len(own), 4):
            writer.append(own[start : start + 4], rows[own[start : start + 4]])
        writer.close()
    stored = StoredDescriptors(tmp_path)
    assert np.array_equal(stored.index, np.unique(dealt))
    there, found = stored.select(np.arange(10, 45), tmp_path / "selected.f32")
    assert np.array_equal(there, np.intersect1d(np.arange(10, 45), dealt))
    assert np.array_equal(found, rows[there])
    assert isinstance(found, np.memmap)


def test_of_repeats_the_first_counts(tmp_path):
    writer = DescriptorWriter(tmp_path, 0)
    writer.append(np.array([5, 3]), np.array([[1.0], [2.0]], np.float32))
    writer.append(np.array([3]), np.array([[9.0]], np.float32))
    writer.close()
    DescriptorWriter(tmp_path, 1).close()  # a process without samples
    there, found = StoredDescriptors(tmp_path).select(np.array([3, 4, 5]), tmp_path / "s.f32")
    assert there.tolist() == [3, 5]
    assert found.ravel().tolist() == [2, 1]


def test_nothing_at_all_is_no_error(tmp_path):
    DescriptorWriter(tmp_path, 0).close()
    there, found = StoredDescriptors(tmp_path).select(np.array([1]), tmp_path / "s.f32")
    assert (len(there), found.shape) == (0, (0, 0))


def test_rows_of_another_size_are_refused(tmp_path):
    writer = DescriptorWriter(tmp_path, 0)
    writer.append(np.array([0]), np.zeros((1, 4), np.float32))
    for index, rows in (([1], (1, 5)), ([1, 2], (1, 4)), ([1], (4,))):
        with pytest.raises(ValueError, match="must be"):
            writer.append(np.array(index), np.zeros(rows, np.float32))
    writer.close()
    other = DescriptorWriter(tmp_path, 1)
    other.append(np.array([1]), np.zeros((1, 5), np.float32))
    other.close()
    with pytest.raises(ValueError, match=r"different sizes: \[4, 5\]"):
        StoredDescriptors(tmp_path)
