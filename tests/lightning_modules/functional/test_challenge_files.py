"""The challenge's files: the reference's reading of a ground truth, round trips, and what is said of broken files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from lightning_modules.functional import challenge_files
from lightning_modules.functional.challenge_files import (
    ChallengeDescriptors,
    read_descriptors,
    read_ground_truth,
    read_predictions,
    write_descriptors,
    write_ground_truth,
    write_predictions,
)
from lightning_modules.functional.retrieval import Candidates

FACTS = Path(__file__).parents[2] / "goldens" / "sscd" / "metrics_manifest.json"


def test_ground_truth_is_read_as_the_reference_reads_it(tmp_path):
    case = json.loads(FACTS.read_text())["ground_truth_csv"]
    (tmp_path / "truth.csv").write_text(case["text"])
    assert [list(pair) for pair in read_ground_truth(tmp_path / "truth.csv")] == case["parsed"]


def test_blank_lines_are_no_pairs_and_queries_may_have_several(tmp_path):
    (tmp_path / "truth.csv").write_text("Q00001,R000001\n\nQ00001,R000002\n , \nQ00003\n")
    assert read_ground_truth(tmp_path / "truth.csv") == [("Q00001", "R000001"), ("Q00001", "R000002")]
    write_ground_truth(tmp_path / "again.csv", [("Q00001", "R000001")])
    assert (tmp_path / "again.csv").read_text() == "query_id,reference_id\nQ00001,R000001\n"
    (tmp_path / "empty.csv").write_text("query_id,reference_id\n")
    assert read_ground_truth(tmp_path / "empty.csv") == []


def test_predictions_come_back_exactly_and_from_best_to_worst(tmp_path):
    rng = np.random.default_rng(0)
    score = (rng.standard_normal(200) * 10.0 ** rng.integers(-9, 5, 200)).astype(np.float32)
    names = [f"Q{i:05d}" for i in range(20)] + [f"R{i:06d}" for i in range(10)]
    cells = rng.permutation(200)
    write_predictions(tmp_path / "p.csv", Candidates(cells // 10, 20 + cells % 10, score), names)
    read = read_predictions(tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text().splitlines()[0] == "query_id,reference_id,score"
    assert [np.float32(s) for *_, s in read] == sorted(score.tolist(), reverse=True)
    wanted = {(names[c // 10], names[20 + c % 10]): s for c, s in zip(cells, score, strict=True)}
    assert {(q, r): np.float32(s) for q, r, s in read} == wanted


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_ground_truth, "a,b,c\n", "line 1: 3 fields; write query_id,reference_id"),
        (read_predictions, "query_id,reference_id,score\nQ1,R1,high\n", "line 2: 'Q1,R1,high'; write"),
        (read_predictions, "Q1,R1,nan\n", "line 1: 'Q1,R1,nan'; write"),
        (read_predictions, "Q1,R1\n", "line 1: 'Q1,R1'; write"),
        (read_ground_truth, b"\xff\xfe\x00", "save it as CSV in UTF-8"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path, read, text, message):
    path = tmp_path / "broken.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read(tmp_path / "absent.csv")


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py", reason="h5py is not installed: pip install h5py")


def test_descriptors_come_back(h5py, tmp_path):
    rng = np.random.default_rng(1)
    queries, references = (rng.standard_normal((n, 6)).astype(np.float32) for n in (4, 40_000))
    ids = [f"Q{i:05d}" for i in range(4)], [f"R{i:06d}" for i in range(40_000)]
    write_descriptors(tmp_path / "d.h5", ChallengeDescriptors(queries, references, *ids))
    read = read_descriptors(tmp_path / "d.h5")
    assert np.array_equal(read.queries, queries)
    assert np.array_equal(read.references, references)
    assert (read.query_ids, read.reference_ids) == ids
    with h5py.File(tmp_path / "d.h5") as file:
        assert sorted(file) == ["query", "query_ids", "reference", "reference_ids"]
        assert file["query"].dtype == np.float32


def test_descriptors_of_other_tools_are_read(h5py, tmp_path):
    # Ids as bytes of fixed length, numbers as float64.
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["query"], file["reference"] = np.ones((1, 3)), np.zeros((2, 3))
        file["query_ids"], file["reference_ids"] = np.array([b"Q00001"]), np.array([b"R000001", b"R000002"])
    read = read_descriptors(tmp_path / "theirs.h5")
    assert (read.query_ids, read.reference_ids) == (["Q00001"], ["R000001", "R000002"])
    assert read.queries.dtype == np.float32


def test_broken_descriptors_are_named(h5py, tmp_path):
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(ValueError, match=r"text\.h5 is no HDF5 file"):
        read_descriptors(tmp_path / "text.h5")
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["query"] = np.ones((2, 3))
    with pytest.raises(ValueError, match="no data set 'reference'"):
        read_descriptors(tmp_path / "part.h5")
    with h5py.File(tmp_path / "short.h5", "w") as file:
        file["query"], file["reference"] = np.ones((2, 3)), np.ones((2, 3))
        file["query_ids"], file["reference_ids"] = [b"a"], [b"b", b"c"]
    with pytest.raises(ValueError, match=r"query is \(2, 3\) beside 1 ids"):
        read_descriptors(tmp_path / "short.h5")


def test_without_h5py_one_line_says_what_to_install(monkeypatch, tmp_path):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(challenge_files.importlib, "import_module", absent)
    with pytest.raises(ValueError, match=r"pip install 'sealmark\[disc\]'"):
        read_descriptors(tmp_path / "d.h5")
