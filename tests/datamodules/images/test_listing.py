"""ImageListing: what a scan finds, how little it holds, and when its cache counts."""

import multiprocessing
import operator
import os
import pickle
import time

import numpy as np
import pytest

from datamodules.images import listing as listing_module
from datamodules.images.listing import IMAGE_EXTENSIONS, ImageListing


@pytest.fixture
def cache_everything(monkeypatch):
    """Small listings reach the cache too."""
    monkeypatch.setattr(listing_module, "CACHED_FROM", 1)


def _touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _settle(folder):
    """Gives every folder an old stamp, as if nobody had written to it for a minute."""
    old = time.time() - 60
    for place, _, _ in os.walk(folder):
        os.utime(place, (old, old))


def _below(root, suffixes=IMAGE_EXTENSIONS):
    """Oracle: os.walk and one sort of the bytes."""
    found = [os.path.join(place, name) for place, _, names in os.walk(root) for name in names]
    hidden = [path for path in found if any(part.startswith(".") for part in os.path.relpath(path, root).split("/"))]
    return sorted((path for path in set(found) - set(hidden) if path.lower().endswith(suffixes)), key=os.fsencode)


def _no_scan(*_):
    raise AssertionError("scanned although the cache was valid")


def test_scan_is_recursive_case_insensitive_sorted_and_skips_hidden(tmp_path):
    _touch(tmp_path, "b.JPG", "a.jpeg", "B.png", "c/x.WebP", "c/d/e.tIf", "c-1/y.bmp", "c.gif", "é.tiff", "z/ü.png")
    _touch(tmp_path, "notes.txt", "jpg", "a.jpg.bak", ".hidden.png", ".cache/i.png", "c/.thumbs/i.png")
    listing = ImageListing.scan(tmp_path)
    assert list(listing) == _below(tmp_path)
    assert len(listing) == 9
    assert list(listing) == sorted(listing, key=os.fsencode)


def test_undecodable_file_name_round_trips(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    try:
        with open(name, "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert os.fsencode(ImageListing.scan(tmp_path)[0]) == name


def test_roots_are_files_and_folders_merged_without_repeats(tmp_path):
    _touch(tmp_path, "p/a.png", "p/c.png", "p/q/b.png", "r/d.png", "s.dat")
    listing = ImageListing.scan(
        [tmp_path / "s.dat", tmp_path / "p/q", tmp_path / "p/c.png", tmp_path / "p", tmp_path / "r"]
    )
    names = ["p/a.png", "p/c.png", "p/q/b.png", "r/d.png", "s.dat"]
    assert list(listing) == [str(tmp_path / name) for name in names]


def test_chosen_extensions_replace_the_usual_ones(tmp_path):
    _touch(tmp_path, "a.png", "b.jpg", "c.HEIC")
    assert list(ImageListing.scan(tmp_path, extensions=("heic", ".jpg"))) == _below(tmp_path, (".heic", ".jpg"))


def test_links_are_followed_but_not_in_circles(tmp_path):
    _touch(tmp_path, "root/a.png", "root/sub/b.png", "outside/c.png")
    (tmp_path / "root/out").symlink_to(tmp_path / "outside")
    (tmp_path / "root/sub/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/self.png").symlink_to(tmp_path / "root/self.png")
    found = [os.path.relpath(path, tmp_path / "root") for path in ImageListing.scan(tmp_path / "root")]
    assert found == ["a.png", "out/c.png", "self.png", "sub/b.png"]


def test_missing_root_is_named(tmp_path):
    _touch(tmp_path, "a.png")
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*nowhere") as caught:
        ImageListing.scan([tmp_path, tmp_path / "nowhere"])
    assert "\n" not in str(caught.value)


def test_finding_nothing_names_roots_and_extensions(tmp_path):
    _touch(tmp_path, "one/a.txt", "two/b.txt")
    with pytest.raises(FileNotFoundError) as caught:
        ImageListing.scan([tmp_path / "one", tmp_path / "two"])
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in (str(tmp_path / "one"), str(tmp_path / "two"), ".jpg", ".tiff"))


@pytest.fixture
def forbid(monkeypatch):
    """Names of folders that cannot be listed; simulated, for root may list every folder."""
    real, locked = os.scandir, set()

    def scandir(path):
        if os.path.basename(os.fsdecode(path)) in locked:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return locked


def test_forbidden_root_is_an_error(tmp_path, forbid):
    _touch(tmp_path, "a.png", "locked/b.png")
    forbid.add("locked")
    with pytest.raises(PermissionError, match=r"cannot list folder '.*locked': Permission denied"):
        ImageListing.scan([tmp_path, tmp_path / "locked"])


def test_forbidden_sub_folder_is_left_out_with_one_line(tmp_path, forbid):
    _touch(tmp_path, "a.png", "locked/b.png", "sub/c.png")
    forbid.add("locked")
    with pytest.warns(UserWarning, match=r"left out: cannot list folder '.*locked': Permission denied") as caught:
        listing = ImageListing.scan(tmp_path)
    assert list(listing) == [str(tmp_path / "a.png"), str(tmp_path / "sub/c.png")]
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)


def test_predictions_below_a_folder_are_not_its_images(tmp_path):
    made = tmp_path / "out"
    (made / "images").mkdir(parents=True)
    for path in (tmp_path / "a.png", made / "images" / "a_mask.png"):
        path.touch()
    (made / os.fsdecode(listing_module.PREDICTIONS)).touch()
    with pytest.warns(UserWarning, match=r"left out: folder '.*out' holds predictions; name it itself"):
        assert list(ImageListing.scan(tmp_path)) == [str(tmp_path / "a.png")]
    assert list(ImageListing.scan(made)) == [str(made / "images" / "a_mask.png")]


def test_a_folder_with_a_broken_disk_is_an_error(tmp_path, monkeypatch):
    _touch(tmp_path, "a.png", "sub/b.png")
    real = os.scandir

    def scandir(path):
        if os.fsencode(path).endswith(b"sub"):
            raise OSError(5, "Input/output error", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(OSError, match=r"cannot list folder '.*sub': Input/output error"):
        ImageListing.scan(tmp_path)


def test_a_scan_without_a_forbidden_folder_is_not_cached(tmp_path, forbid, cache_everything):
    _touch(tmp_path / "images", "a.png", "locked/b.png")
    _settle(tmp_path / "images")
    forbid.add("locked")
    with pytest.warns(UserWarning, match="locked"):
        assert len(ImageListing.scan(tmp_path / "images", cache_dir=tmp_path / "cache")) == 1
    forbid.clear()
    assert len(ImageListing.scan(tmp_path / "images", cache_dir=tmp_path / "cache")) == 2


def test_indexing_slicing_selecting_and_joining_agree_with_a_list():
    paths = [f"f/{number}é.png" for number in range(20)]
    listing = ImageListing.from_paths(paths)
    assert list(listing) == paths
    assert listing[-1] == paths[-1]
    assert list(listing[3:15:4]) == paths[3:15:4]
    assert list(listing.select(np.array([5, 5, 0]))) == [paths[5], paths[5], paths[0]]
    assert list(ImageListing.concatenate([listing[:3], listing[7:7], listing[9:]])) == paths[:3] + paths[9:]
    assert listing == ImageListing.from_paths(paths)
    assert listing != listing[1:]
    with pytest.raises(IndexError):
        listing[20]
    with pytest.raises(ValueError, match="read-only"):
        listing._blob[0] = 0


def test_200_000_paths_cost_their_characters_and_8_bytes_each():
    paths = [f"/data/photos/part_{number // 1000:04}/image_{number:08}.jpg" for number in range(200_000)]
    listing = ImageListing.from_paths(paths)
    assert listing.nbytes == sum(map(len, paths)) + 8 * (len(paths) + 1)
    assert listing[123_456] == paths[123_456]
    assert len(pickle.dumps(listing, protocol=5)) < listing.nbytes + 1000


def test_cached_listing_pickles_to_its_file_name(tmp_path, monkeypatch):
    monkeypatch.setattr(listing_module, "CACHED_FROM", 500)
    _touch(tmp_path / "images", *(f"{number:05}.png" for number in range(500)))
    _settle(tmp_path / "images")
    listing = ImageListing.scan(tmp_path / "images", cache_dir=tmp_path / "cache")
    assert list(listing) == _below(tmp_path / "images")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert len(pickle.dumps(listing)) < 500
    assert pickle.loads(pickle.dumps(listing)) == listing
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(operator.getitem, (listing, 77)) == listing[77]


def test_short_listing_needs_no_cache_file(tmp_path):
    _touch(tmp_path / "images", "a.png")
    _settle(tmp_path / "images")
    ImageListing.scan(tmp_path / "images", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("variable", ["SEALMARK_CACHE", "XDG_CACHE_HOME"])
def test_cache_folder_comes_from_the_environment(tmp_path, monkeypatch, variable, cache_everything):
    monkeypatch.delenv("SEALMARK_CACHE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "place"))
    _touch(tmp_path / "images", "a.png")
    _settle(tmp_path / "images")
    ImageListing.scan(tmp_path / "images")
    folder = tmp_path / "place" / ("" if variable == "SEALMARK_CACHE" else "sealmark")
    assert [path.suffix for path in folder.iterdir()] == [".listing"]


class TestInvalidation:
    """A cache is used exactly while a new scan would find the same."""

    @pytest.fixture
    def scan(self, tmp_path, cache_everything):
        _touch(tmp_path / "images", "a.png", "sub/b.png", "sub/deep/c.png", "empty/note.txt")
        _settle(tmp_path / "images")

        def scan():
            return list(ImageListing.scan(tmp_path / "images", cache_dir=tmp_path / "cache"))

        assert scan() == _below(tmp_path / "images")
        return scan

    def test_unchanged_folders_are_not_scanned_again(self, scan, tmp_path, monkeypatch):
        monkeypatch.setattr(listing_module, "_walk", _no_scan)
        assert scan() == _below(tmp_path / "images")

    @pytest.mark.parametrize("name", ["new.png", "sub/deep/new.png", "empty/new.png", "sub/nested/er/new.png"])
    def test_added_file_is_seen(self, scan, tmp_path, name):
        _touch(tmp_path / "images", name)
        assert scan() == _below(tmp_path / "images")
        assert str(tmp_path / "images" / name) in scan()

    @pytest.mark.parametrize("name", ["a.png", "sub/deep/c.png"])
    def test_removed_file_is_seen(self, scan, tmp_path, name):
        (tmp_path / "images" / name).unlink()
        assert scan() == _below(tmp_path / "images")
        assert len(scan()) == 2

    def test_renamed_folder_is_seen(self, scan, tmp_path):
        (tmp_path / "images/sub").rename(tmp_path / "images/other")
        assert scan() == _below(tmp_path / "images")

    def test_folder_swapped_for_another_of_equal_stamp_is_seen(self, scan, tmp_path):
        place = tmp_path / "images/sub/deep"
        stamps = {folder: os.stat(folder) for folder in (place, place.parent)}
        place.rename(tmp_path / "away")
        _touch(place, "z.png")
        for folder, status in stamps.items():
            os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert scan() == _below(tmp_path / "images")

    def test_other_extensions_have_their_own_cache(self, scan, tmp_path):
        _touch(tmp_path / "images", "d.heic")
        _settle(tmp_path / "images")
        found = ImageListing.scan(tmp_path / "images", extensions=[".heic"], cache_dir=tmp_path / "cache")
        assert list(found) == [str(tmp_path / "images/d.heic")]

    @pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "folder"])
    def test_broken_cache_is_rebuilt_in_silence(self, scan, tmp_path, damage, capfd):
        (cache,) = (tmp_path / "cache").iterdir()
        data = cache.read_bytes()
        content = {"cut": data[:-5], "flip": data.replace(b"c.png", b"d.png"), "empty": b"", "text": b"hello " * 50}
        cache.unlink()
        if damage == "folder":
            cache.mkdir()
        else:
            cache.write_bytes(content[damage])
        assert scan() == _below(tmp_path / "images")
        assert capfd.readouterr() == ("", "")

    def test_listing_survives_deletion_of_its_cache(self, scan, tmp_path):
        listing = ImageListing.scan(tmp_path / "images", cache_dir=tmp_path / "cache")
        (cache,) = (tmp_path / "cache").iterdir()
        message = pickle.dumps(listing)
        cache.unlink()
        assert list(listing) == _below(tmp_path / "images")
        with pytest.raises(OSError, match="start the run again"):
            pickle.loads(message)

    def test_worker_refuses_a_cache_that_another_run_replaced(self, scan, tmp_path):
        message = pickle.dumps(ImageListing.scan(tmp_path / "images", cache_dir=tmp_path / "cache"))
        _touch(tmp_path / "images", "new.png")
        _settle(tmp_path / "images")
        scan()
        with pytest.raises(OSError, match="changed while a run was using it"):
            pickle.loads(message)


def test_folder_written_to_a_moment_ago_is_not_cached(tmp_path, cache_everything):
    _touch(tmp_path / "images", "a.png")
    ImageListing.scan(tmp_path / "images", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("failure", ["file in the way", "full disk"])
def test_unwritable_cache_only_loses_the_cache(tmp_path, monkeypatch, failure, cache_everything):
    _touch(tmp_path / "images", "a.png")
    _settle(tmp_path / "images")
    place = tmp_path / "cache"
    if failure == "file in the way":
        place.touch()
    else:

        def fsync(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fsync)
    assert list(ImageListing.scan(tmp_path / "images", cache_dir=place)) == _below(tmp_path / "images")
    assert place.is_file() or list(place.iterdir()) == []
