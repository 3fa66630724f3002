"""Arrays are mapped, and a header is not believed."""

import numpy as np
import pytest

from datamodules.array_files import map_array


def test_an_array_is_mapped_not_read(tmp_path):
    stored = np.arange(12, dtype=np.float16).reshape(3, 4)
    np.save(tmp_path / "a.npy", stored)
    mapped = map_array(tmp_path / "a.npy")
    assert np.array_equal(mapped, stored)
    assert isinstance(mapped.base, np.memmap) or isinstance(mapped, np.memmap)


@pytest.mark.parametrize("version", [2, 3])
def test_a_stated_header_of_gigabytes_is_refused_before_it_is_read(tmp_path, version, monkeypatch):
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + (0xFFFFFFF0).to_bytes(4, "little") + b"{}")
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(ValueError, match="a header of 4294967280 bytes"):
        map_array(path)


def test_objects_are_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"[Pp]ickle|[Oo]bject"):
        map_array(tmp_path / "a.npy")
