"""Manifests: rows in file order, paths beside the manifest, faults by file and line."""

import json
import os

import pytest

from datamodules.images.manifests import read_manifest


def _write(folder, name, text, encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def test_csv_gives_paths_in_row_order_and_string_columns(tmp_path):
    path = _write(tmp_path, "m.csv", 'label,path,note\r\n3,b.png,"x, y"\r\n\r\n1,sub/../a.png,\r\n')
    listing, columns = read_manifest(path)
    assert list(listing) == [str(tmp_path / "b.png"), str(tmp_path / "a.png")]
    assert columns == {"label": ["3", "1"], "note": ["x, y", ""]}


def test_jsonl_keeps_types_and_fills_gaps_with_none(tmp_path):
    rows = [{"path": "a.png", "n": 1}, {"path": "b.png", "late": [2]}, {"path": "c.png", "n": None, "late": "z"}]
    path = _write(tmp_path, "m.JSONL", "\n".join(map(json.dumps, rows)) + "\n\n")
    listing, columns = read_manifest(path)
    assert [os.path.basename(item) for item in listing] == ["a.png", "b.png", "c.png"]
    assert columns == {"n": [1, None, None], "late": [None, [2], "z"]}


def test_path_wins_over_file_and_file_serves_alone(tmp_path):
    both, columns = read_manifest(_write(tmp_path, "both.csv", "file,path\nx.png,y.png\n"))
    assert (list(both), columns) == ([str(tmp_path / "y.png")], {"file": ["x.png"]})
    alone, _ = read_manifest(_write(tmp_path, "alone.csv", "file\nx.png\n"))
    assert list(alone) == [str(tmp_path / "x.png")]


def test_absolute_paths_byte_order_mark_and_kept_columns(tmp_path):
    text = "\ufeffpath,a,b\n/pictures/é.png,1,2\n"
    listing, columns = read_manifest(_write(tmp_path, "m.csv", text), keep=("b",))
    assert (list(listing), columns) == (["/pictures/é.png"], {"b": ["2"]})


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("m.csv", "name,url\na,b\n", ["line 1", "no column 'path' or 'file'", "'name', 'url'"]),
        ("m.csv", "path,a\nx.png,1\ny.png,1,2\n", ["line 3", "3 fields under a header of 2"]),
        ("m.csv", "path,a\n ,1\n", ["line 2", "'path' holds no path", "' '"]),
        ("m.csv", "path,a,a\nx,1,2\n", ["line 1", "'a' appears twice"]),
        ("m.csv", 'path\n"x.png\n', ["unexpected end of data"]),
        ("m.jsonl", '{"path": "a.png"}\n{"file": "b.png"}\n', ["line 2", "'path' holds no path", "None"]),
        ("m.jsonl", '{"url": "a.png"}\n', ["line 1", "'url'"]),
        ("m.jsonl", '{"path": 3}\n', ["line 1", "got 3"]),
        ("m.jsonl", '\n{"path": \n', ["line 2", "no JSON"]),
        ("m.jsonl", '["a.png"]\n', ["line 1", "got list"]),
    ],
)
def test_fault_is_one_line_with_file_and_place(tmp_path, name, text, expected):
    path = _write(tmp_path, name, text)
    with pytest.raises(ValueError, match="manifest") as caught:
        read_manifest(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert all(part in message for part in expected), message


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_other_encoding_is_named_with_its_line(tmp_path, name):
    row = "é.png\n" if name == "m.csv" else '{"path": "é.png"}\n'
    path = _write(tmp_path, name, "path\n" + row if name == "m.csv" else row, "latin-1")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_manifest(path)


@pytest.mark.parametrize(("name", "text"), [("m.csv", "path,a\n"), ("m.csv", ""), ("m.jsonl", "\n\n")])
def test_manifest_without_rows_is_an_error(tmp_path, name, text):
    with pytest.raises(FileNotFoundError, match="lists no images"):
        read_manifest(_write(tmp_path, name, text))


def test_missing_manifest_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such manifest: .*none\.csv"):
        read_manifest(tmp_path / "none.csv")
