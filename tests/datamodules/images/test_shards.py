"""Shards: names, reading by range, local or in a store, and what happens to damaged ones."""

import io
import os
import pickle

import cv2
import numpy as np
import pytest

from datamodules.images.decoding import decode_bytes, read_image
from datamodules.images.errors import UnreadableImageError
from datamodules.images.shards import PackedNames, ShardIndex, ShardSource, is_shard_folder, shrunk


def write(folder, pictures):
    """A folder of two shards without the headers of tar files, which no reader looks at."""
    (folder / "shards").mkdir(parents=True)
    rows = []
    for number, (name, data) in enumerate(pictures.items()):
        with (folder / f"shards/{number % 2}.tar").open("ab") as file:
            rows.append((name, number % 2, file.tell(), len(data)))
            file.write(data)
    names, shard, offset, length = zip(*rows, strict=True)
    index = ShardIndex(
        PackedNames.pack(names),
        np.array(shard, np.int32),
        np.array(offset, np.int64),
        np.array(length, np.int32),
        PackedNames.pack(["0.tar", "1.tar"]),
    )
    index.save(folder / "index")
    return ShardSource(folder)


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8)


def png(number):
    return cv2.imencode(".png", picture(number)[..., ::-1])[1].tobytes()


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "set", {f"photo ü {number}.png": png(number) for number in range(5)})


def test_images_come_back_by_position(source):
    assert len(source) == 5
    for number in range(5):
        np.testing.assert_array_equal(source.read(number), picture(number))
    np.testing.assert_array_equal(source.read(-1), picture(4))
    assert source.path(3).endswith("shards/1.tar/photo ü 3.png")
    assert source.names[1:3] == ["photo ü 1.png", "photo ü 2.png"]
    with pytest.raises(IndexError):
        source.read(5)


def test_a_source_is_sent_to_workers(source):
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(2), picture(2))


def test_a_store_gives_the_same_images(source):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.put(source.root, "/bucket/set", recursive=True)
    remote = ShardSource("memory://bucket/set")
    for number in range(5):
        np.testing.assert_array_equal(remote.read(number), picture(number))
    assert is_shard_folder("memory://bucket/set")


def test_folders_of_shards_are_told_from_others(source, tmp_path):
    assert is_shard_folder(source.root)
    assert not is_shard_folder(str(tmp_path))
    assert not is_shard_folder("procedural://5")


def test_damaged_shards_name_the_image(source):
    os.truncate(f"{source.root}/shards/0.tar", len(png(0)) + 5)
    np.testing.assert_array_equal(source.read(0), picture(0))
    with pytest.raises(UnreadableImageError, match=r"0\.tar/photo ü 2\.png.*the shard ends before it"):
        source.read(2)
    os.remove(f"{source.root}/shards/1.tar")
    with pytest.raises(UnreadableImageError, match="No such file"):
        source.read(1)


def test_an_unfinished_folder_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="name a folder that `sealmark prepare sa1b` has finished"):
        ShardSource(tmp_path)


def test_bytes_decode_as_files_do(tmp_path):
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), cv2.resize(picture(0), (300, 200)))
    for target in (None, 40):
        np.testing.assert_array_equal(decode_bytes(path.read_bytes(), "a", target), read_image(path, target))
    with pytest.raises(UnreadableImageError, match="truncated"):
        decode_bytes(path.read_bytes()[:900], "a")
    with pytest.raises(UnreadableImageError, match="empty"):
        decode_bytes(io.BytesIO().getvalue(), "a")


def test_shrinking_averages_areas():
    image = picture(0)
    halved = image.reshape(10, 2, 15, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrunk(image, (15, 10)) - halved).max() <= 0.5
    assert shrunk(image, (30, 20)) is image
    assert shrunk(image, (60, 40)).shape == (40, 60, 3)


def test_a_store_without_its_package_is_not_taken_for_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")

    def refuse(address: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(ValueError, match=r"^cannot open 's3://bucket/set/.*': Install s3fs to access S3$"):
        ShardSource("s3://bucket/set")
