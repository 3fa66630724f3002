"""Building and adding, against search by brute force over all that should be there."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from callbacks.prediction_files import FolderLock
from experiments.copy_index import segments, writing
from experiments.copy_index.inputs import DescriptorFolders
from experiments.copy_index.manifest import read_manifest
from experiments.copy_index.searching import CopyIndex

ROOT = Path(__file__).parents[3]
DIMS = 16


def unit_rows(seed: int, count: int) -> Any:
    rows = np.random.default_rng(seed).normal(size=(count, DIMS)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def folders(*paths: Path) -> DescriptorFolders:
    return DescriptorFolders(list(paths))


def contents(index: Path) -> set[str]:
    """Return the paths that can be found."""
    opened = CopyIndex.open(index)
    count = sum(segment.rows for segment in opened.manifest.segments)
    _, ids = opened.search(unit_rows(99, 1), count)
    return set(opened.paths(ids[0][ids[0] >= 0]))


def names(seed: int, count: int) -> list[str]:
    return [f"/{seed}/{i}.jpg" for i in range(count)]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 7 rows, blocks of 3."""
    monkeypatch.setattr(writing, "SEGMENT_BYTES", 7 * 4 * DIMS)
    monkeypatch.setattr(writing, "BLOCK", 3)
    monkeypatch.setattr(segments, "BLOCK", 3)


def brute_force(rows: Any, paths: list[str], queries: Any, k: int) -> list[list[str]]:
    order = np.argsort(-(queries @ rows.T), axis=1)[:, :k]
    return [[paths[i] for i in line] for line in order]


@pytest.mark.usefixtures("small_parts")
def test_a_flat_index_answers_as_brute_force(tmp_path: Path, predicted: Callable[..., Path]) -> None:
    index = tmp_path / "index"
    manifest = writing.build(index, folders(predicted(1, 30), predicted(2, 11)))
    assert (manifest.kind, manifest.rows, len(manifest.segments)) == ("flat", 41, 6)
    assert manifest.quality is not None
    assert manifest.quality["recall_at_1"] == 1
    writing.add(index, folders(predicted(3, 9)))
    rows = np.concatenate([unit_rows(1, 30), unit_rows(2, 11), unit_rows(3, 9)])
    paths = names(1, 30) + names(2, 11) + names(3, 9)
    queries = unit_rows(5, 8)
    for k in (1, 5, 50, 60):
        scores, ids = CopyIndex.open(index).search(queries, k)
        found = [CopyIndex.open(index).paths(line[line >= 0]) for line in ids]
        assert found == brute_force(rows, paths, queries, k)
        np.testing.assert_allclose(scores[:, :50], -np.sort(-(queries @ rows.T), axis=1)[:, :k], atol=1e-6)
        assert (ids[:, 50:] == -1).all()
        assert np.isneginf(scores[:, 50:]).all()


def test_a_flat_segment_is_what_faiss_writes(tmp_path: Path, predicted: Callable[..., Path]) -> None:
    import faiss

    writing.build(tmp_path / "index", folders(predicted(1, 30)))
    theirs = faiss.IndexFlatIP(DIMS)
    theirs.add(unit_rows(1, 30))
    faiss.write_index(theirs, str(tmp_path / "theirs"))
    assert (tmp_path / "index" / "000001.faiss").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("kind", ["ivf", "ivf_pq"])
def test_lists_find_what_brute_force_finds(
    tmp_path: Path, predicted: Callable[..., Path], kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "SEGMENT_BYTES", 300 * 4 * DIMS)
    index = tmp_path / "index"
    manifest = writing.build(index, folders(predicted(1, 1000)), kind)
    writing.add(index, folders(predicted(2, 100)))
    assert manifest.quality is not None
    opened = CopyIndex.open(index)
    assert len(opened.segments) == (5 if kind == "ivf" else 2)
    for segment in opened.segments:
        segment.look_at(manifest.quality["lists"])  # type: ignore[attr-defined]
    rows, paths = np.concatenate([unit_rows(1, 1000), unit_rows(2, 100)]), names(1, 1000) + names(2, 100)
    queries = unit_rows(5, 20)
    scores, ids = opened.search(queries, 10)
    wanted = brute_force(rows, paths, queries, 10)
    if kind == "ivf":
        assert [opened.paths(line) for line in ids] == wanted, "all lists looked at, so exact"
        np.testing.assert_allclose(scores, -np.sort(-(queries @ rows.T), axis=1)[:, :10], atol=1e-6)
    else:
        assert sum(first[0] in opened.paths(line) for first, line in zip(wanted, ids, strict=True)) >= 15
    own = [opened.search(rows[i : i + 1], 1)[1][0, 0] for i in (0, 500, 999, 1050)]
    assert own == [0, 500, 999, 1050]


def test_the_recall_told_is_the_recall_there_is(tmp_path: Path, predicted: Callable[..., Path]) -> None:
    """The figure is recomputed by numpy from the queries that it says it used."""
    from experiments.copy_index.learning import COSINE, make_queries

    folder = predicted(1, 3000)
    manifest = writing.build(tmp_path / "index", folders(folder), "ivf")
    rows = unit_rows(1, 3000)
    queries, ids = make_queries(folders(folder))  # type: ignore[arg-type]
    np.testing.assert_allclose((queries * rows[ids]).sum(axis=1), COSINE, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-5)
    exact = (queries @ rows.T).argmax(axis=1)
    _, found = CopyIndex.open(tmp_path / "index").search(queries, 10)
    assert manifest.quality is not None
    assert manifest.quality["recall_at_1"] == pytest.approx((found[:, 0] == exact).mean())
    assert manifest.quality["recall_at_10"] == pytest.approx((found == exact[:, None]).any(axis=1).mean())
    assert manifest.quality["queries"] == len(queries) == 200
    assert 0 < manifest.quality["recall_at_1"] <= manifest.quality["recall_at_10"] <= 1


def test_a_description_of_fewer_lists_is_worse(tmp_path: Path, predicted: Callable[..., Path]) -> None:
    from experiments.copy_index.learning import exact_answers, make_queries, recall

    given: Any = folders(predicted(1, 3000))
    writing.build(tmp_path / "index", given, "ivf")
    opened = CopyIndex.open(tmp_path / "index")
    queries, _ = make_queries(given)
    exact = exact_answers(queries, given)
    found = []
    for lists in (1, 8, 128):
        opened.segments[0].look_at(lists)  # type: ignore[attr-defined]
        found.append(recall(opened, queries, exact)[1])
    assert found[0] < found[1] < found[2] == 1


@pytest.mark.parametrize(
    ("rows", "kind"), [(1, "flat"), (200_000, "flat"), (200_001, "ivf"), (4_000_000, "ivf"), (4_000_001, "ivf_pq")]
)
def test_the_kind_goes_by_size(rows: int, kind: str) -> None:
    from experiments.copy_index.learning import choose_kind

    assert choose_kind(rows) == kind


def test_sizes_of_lists_and_codes() -> None:
    from experiments.copy_index.learning import code_bytes, list_count

    assert [code_bytes(dims) for dims in (512, 1024, 16, 20, 7, 4)] == [64, 128, 2, 2, 1, 1]
    assert [list_count(rows) for rows in (1, 49, 50, 1000, 200_000, 1_000_000)] == [1, 1, 16, 64, 1024, 2048]


# --- duplicates ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_what_is_there_already(
    tmp_path: Path, predicted: Callable[..., Path], write_predictions: Callable[..., Path], kind: Any
) -> None:
    index = tmp_path / "index"
    writing.build(index, folders(predicted(1, 20)), kind)
    rows = np.concatenate([unit_rows(7, 4), unit_rows(1, 20)[:3]])
    again = write_predictions(tmp_path / "again", rows, ["/1/18.jpg", "/new.jpg", "/1/2.jpg", "/1/3.jpg", *"abc"])
    before = read_manifest(index)
    with pytest.raises(ValueError, match=r"3 of the 7 images are in .* already, first /1/18\.jpg") as error:
        writing.add(index, folders(again))
    assert "--duplicates" in str(error.value)
    assert read_manifest(index) == before

    copy = shutil.copytree(index, tmp_path / "copy")
    manifest, added, replaced = writing.add(copy, folders(again), "skip")
    assert (added, replaced, manifest.rows) == (4, 0, 24)
    scores, ids = CopyIndex.open(copy).search(unit_rows(1, 20)[18:19], 1)
    assert CopyIndex.open(copy).paths(ids[0]) == ["/1/18.jpg"]
    assert scores[0, 0] == pytest.approx(1)
    assert writing.add(copy, folders(again), "skip")[1:] == (0, 0)

    for _ in range(3):
        manifest, added, replaced = writing.add(index, folders(again), "replace")
    assert (added, replaced, manifest.rows) == (7, 7, 24)
    opened = CopyIndex.open(index)
    for segment in opened.segments:
        getattr(segment, "look_at", int)(99)
    scores, ids = opened.search(rows[:1], 30)
    found = opened.paths(ids[0][ids[0] >= 0])
    assert sorted(found) == sorted(set(names(1, 20)) | {"/new.jpg", "a", "b", "c"}), "each once"
    assert found[0] == "/1/18.jpg"
    assert scores[0, 0] == pytest.approx(1)
    assert opened.search(unit_rows(1, 20)[18:19], 1)[0][0, 0] < 0.99, "the old descriptor is gone"


def test_an_image_given_twice_is_refused(tmp_path: Path, write_predictions: Callable[..., Path]) -> None:
    twice = write_predictions(tmp_path / "p", unit_rows(1, 3), ["/a", "/b", "/a"])
    with pytest.raises(ValueError, match="/a is among the descriptors twice"):
        writing.build(tmp_path / "index", folders(twice))


def test_paths_with_equal_hashes_are_different(
    tmp_path: Path, predicted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (writing, segments):
        monkeypatch.setattr(module, "path_hash", lambda path: 7)
    writing.build(tmp_path / "index", folders(predicted(1, 5)))
    manifest, _, _ = writing.add(tmp_path / "index", folders(predicted(2, 5)))
    assert manifest.rows == 10


@pytest.mark.parametrize("path", ["/dög\udcff.jpg", "/a\nb", '/"q"\\', "/字" * 400])
def test_any_path_is_kept(tmp_path: Path, write_predictions: Callable[..., Path], path: str) -> None:
    given = write_predictions(tmp_path / "p", unit_rows(1, 3), ["/a", path, "/z"])
    writing.build(tmp_path / "index", folders(given))
    assert CopyIndex.open(tmp_path / "index").paths(np.array([1, 2, 0])) == [path, "/z", "/a"]
    with pytest.raises(ValueError, match=r"in .* already"):
        writing.add(tmp_path / "index", folders(given))


# --- refusals --------------------------------------------------------------------------------------------------------


def test_descriptors_of_another_model_are_refused(tmp_path: Path, predicted: Callable[..., Path]) -> None:
    index = tmp_path / "index"
    writing.build(index, folders(predicted(1, 5)))
    for other in (predicted(2, 5, model="b"), predicted(3, 5, dims=8)):
        with pytest.raises(ValueError, match="different models"):
            writing.add(index, folders(other))
        with pytest.raises(ValueError, match="different models"):
            folders(predicted(1, 5), other)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
def test_rows_whose_scores_would_be_no_cosines_are_refused(
    tmp_path: Path, write_predictions: Callable[..., Path], value: float
) -> None:
    rows = unit_rows(1, 5)
    rows[3] *= value
    given = write_predictions(tmp_path / "p", rows, list("abcde"))
    with pytest.raises(ValueError, match="instead of 1") as error:
        writing.build(tmp_path / "index", folders(given))
    assert str(given) in str(error.value)
    assert not (tmp_path / "index" / "manifest.json").exists()


def test_an_index_is_not_built_over(tmp_path: Path, predicted: Callable[..., Path]) -> None:
    writing.build(tmp_path / "index", folders(predicted(1, 5)))
    with pytest.raises(FileExistsError, match="is an index already"):
        writing.build(tmp_path / "index", folders(predicted(2, 5)))
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        writing.build(tmp_path / "file", folders(predicted(2, 5)))
    with pytest.raises(FileNotFoundError, match="is no index"):
        writing.add(tmp_path / "absent", folders(predicted(2, 5)))
    assert not (tmp_path / "absent").exists()


def test_two_writers_at_a_time_are_refused(tmp_path: Path, predicted: Callable[..., Path]) -> None:
    writing.build(tmp_path / "index", folders(predicted(1, 5)))
    other = FolderLock()
    assert other.take(tmp_path / "index", 0)
    with pytest.raises(ValueError, match="another build or add is writing"):
        writing.add(tmp_path / "index", folders(predicted(2, 5)))
    other.release()
    writing.add(tmp_path / "index", folders(predicted(2, 5)))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a faiss file cut": lambda index: os.truncate(index / "000001.faiss", 100),
    "a faiss file changed": lambda index: flip(index / "000001.faiss", -20),
    "a faiss file missing": lambda index: (index / "000001.faiss").unlink(),
    "a table cut": lambda index: os.truncate(index / "000001.table", 10),
    "no manifest": lambda index: (index / "manifest.json").unlink(),
    "no JSON": lambda index: (index / "manifest.json").write_text("{"),
    "another JSON": lambda index: (index / "manifest.json").write_text('{"a": 1}'),
    "a list": lambda index: (index / "manifest.json").write_text("[]"),
    "an absolute name": lambda index: rewrite(index, "files", {"/etc/passwd": {"size": 1, "sha256": ""}}),
    "no files": lambda index: rewrite(index, "files", {}),
    "another kind": lambda index: rewrite(index, "kind", "hnsw"),
    "another size": lambda index: rewrite(index, "dims", 99),
    "more rows": lambda index: rewrite(index, "segments", [{"number": 1, "rows": 10**9}]),
    "an entry too many": lambda index: rewrite(index, "surprise", 1),
}


def rewrite(index: Path, key: str, value: object) -> None:
    content = json.loads((index / "manifest.json").read_text())
    (index / "manifest.json").write_text(json.dumps(content | {key: value}))


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_a_damaged_index_is_named_before_faiss_reads_it(
    tmp_path: Path, predicted: Callable[..., Path], damage: str, kind: Any
) -> None:
    index = tmp_path / "index"
    writing.build(index, folders(predicted(1, 60)), kind)
    DAMAGES[damage](index)
    if damage == "a faiss file changed" and kind == "flat":
        CopyIndex.open(index)  # a number of a descriptor, which no reader can stumble over
        return
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        CopyIndex.open(index)
    assert str(index) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_faiss_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.faiss").write_bytes(b"IwFl" + b"\xff" * 300)
    with pytest.raises(ValueError, match=r"x\.faiss is no index of 300 descriptors") as error:
        segments.read_faiss(tmp_path / "x.faiss", 8, 300)
    assert "\n" not in str(error.value)


# --- kills -----------------------------------------------------------------------------------------------------------

KILLER = """
import os, shutil, signal, sys
from pathlib import Path
import faiss
from experiments.copy_index import manifest, segments, writing
from experiments.copy_index.inputs import DescriptorFolders

work, kind, duplicates = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
faiss.omp_set_num_threads(1)
writing.SEGMENT_BYTES = 7 * 4 * 16
left = [0]

def step(real):
    def replaced(*args, **options):
        # Before and after: a rename that has happened is another moment than one that has not.
        for call in (None, real):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = call and call(*args, **options)
        return answer
    return replaced

for owner, name in ((os, "replace"), (os, "fsync"), (os, "unlink"), (Path, "unlink"), (Path, "write_text"),
                    (faiss, "write_index"), (segments, "flat_header"), (segments, "path_hash")):
    setattr(owner, name, step(getattr(owner, name)))
number = 0
while True:
    number += 1
    copy = shutil.copytree(work / "index", work / f"killed{number:03d}")
    child = os.fork()
    if not child:
        left[0] = number
        writing.add(copy, DescriptorFolders([work / "given"]), duplicates)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        sys.exit(os.WEXITSTATUS(status))
    assert os.WTERMSIG(status) == signal.SIGKILL
"""


@pytest.mark.parametrize(("kind", "duplicates"), [("flat", "refuse"), ("flat", "replace"), ("ivf", "refuse")])
def test_killed_at_any_step_of_an_add_it_is_the_old_index_or_the_new(
    tmp_path: Path,
    predicted: Callable[..., Path],
    write_predictions: Callable[..., Path],
    kind: Any,
    duplicates: str,
) -> None:
    writing.build(tmp_path / "index", folders(predicted(1, 8)), kind)
    writing.add(tmp_path / "index", folders(predicted(3, 2)))
    (tmp_path / "index" / "000077.faiss").write_bytes(b"of an add that was killed before")
    given = [*names(2, 12), *(names(1, 3) if duplicates == "replace" else [])]
    write_predictions(tmp_path / "given", unit_rows(2, len(given)), given)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", KILLER, tmp_path, kind, duplicates], check=True, env=environment, cwd=ROOT)
    *killed, last = sorted(tmp_path.glob("killed*"))
    old, new = set(names(1, 8) + names(3, 2)), set(names(1, 8) + names(3, 2) + given)
    states = [contents(each) for each in killed]
    assert len(killed) > 40
    assert states.count(old) + states.count(new) == len(killed)
    first_new = states.index(new)
    assert 0 < first_new < len(killed), "some are old, some are new"
    assert all(state == new for state in states[first_new:])
    assert contents(last) == new
    for each, state in list(zip(killed, states, strict=True))[:: max(1, len(killed) // 12)]:
        writing.add(each, folders(tmp_path / "given"), "refuse" if state == old and duplicates == "refuse" else "skip")
        assert contents(each) == new, "an add after a kill works"
        counted = set(read_manifest(each).files) | {"manifest.json"}
        assert {path.name for path in each.iterdir() if not path.name.startswith(".")} == counted, "nothing is left"


def test_all_that_a_manifest_names_is_on_the_disk_before_it(
    tmp_path: Path, predicted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut, only what was fsynced before the rename is sure to be there."""
    index = tmp_path / "index"
    writing.build(index, folders(predicted(1, 8)), "ivf")
    synced: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def fsync(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        real_sync(file)

    def replace(source: Any, target: Any) -> None:
        new = set(json.loads(Path(source).read_text())["files"]) - set(read_manifest(index).files)
        assert new == {"000002.faiss", "000002.paths", "000002.table"}
        assert {str(index / name) for name in new} | {str(index), str(source)} <= set(synced)
        synced.clear()
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    writing.add(index, folders(predicted(2, 8)))
    assert synced == [str(index)]
