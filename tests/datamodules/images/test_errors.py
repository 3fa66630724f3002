"""UnreadableImageError keeps its one line on every way out of a worker."""

import multiprocessing
import pickle

import pytest
from torch.utils.data import DataLoader, Dataset

from datamodules.images.decoding import read_image
from datamodules.images.errors import UnreadableImageError

AWKWARD_PATHS = [
    "photos/a.jpg",
    "it's; here: cannot read image 'x': y.jpg",
    "both ' and \".png",
    "line\nbreak\t.png",
    "bytes\udcff.png",
    "back\\slash.tif",
    "日本.webp",
    "",
]
AWKWARD_REASON = "HEIC; JPEG, PNG can be read; remove it: 'x'"


class _Failing(Dataset):
    def __len__(self):
        return len(AWKWARD_PATHS)

    def __getitem__(self, index):
        try:
            raise UnreadableImageError("earlier.png", "an earlier error")
        except OSError as cause:
            raise UnreadableImageError(AWKWARD_PATHS[index], AWKWARD_REASON) from cause


def _line(path, reason="truncated JPEG file"):
    return str(UnreadableImageError(path, reason))


def test_line_names_file_reason_and_remedy():
    line = _line("a/b.jpg", "the file\nis  empty")
    assert line == "cannot read image 'a/b.jpg': the file is empty; remove the file or set on_unreadable to skip"


@pytest.mark.parametrize("path", AWKWARD_PATHS)
def test_is_an_oserror_of_one_printable_line(path):
    error = UnreadableImageError(path, "gone")
    assert isinstance(error, OSError)
    assert str(error).isprintable()
    assert error.errno is None


@pytest.mark.parametrize("path", AWKWARD_PATHS)
def test_survives_pickling(path):
    copy = pickle.loads(pickle.dumps(UnreadableImageError(path, "gone")))
    assert (copy.path, copy.reason, str(copy)) == (path, "gone", _line(path, "gone"))


def test_survives_torch_worker_with_cause_and_semicolons():
    batches = iter(DataLoader(_Failing(), num_workers=1))
    for path in AWKWARD_PATHS:
        with pytest.raises(UnreadableImageError) as caught:
            next(batches)
        assert (caught.value.path, caught.value.reason) == (path, AWKWARD_REASON)
        assert str(caught.value) == _line(path, AWKWARD_REASON)


def test_spawned_process_raises_the_same_line(tmp_path):
    path = str(tmp_path / "empty.jpg")
    (tmp_path / "empty.jpg").touch()
    with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(UnreadableImageError) as caught:
        pool.apply(read_image, (path,))
    assert (caught.value.path, caught.value.reason) == (path, "the file is empty")


def test_foreign_text_is_kept_as_the_reason():
    error = UnreadableImageError("something else\nhappened")
    assert (error.path, error.reason) == ("", "something else happened")
    assert "\n" not in str(error)
