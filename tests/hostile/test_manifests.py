"""Hostile lists of images and hostile folders: every path read, or one line that names the file and the row."""

import json
import os
import random
import warnings

import pytest

from datamodules.images.listing import ImageListing
from datamodules.images.manifests import read_manifest
from datamodules.images.sources import open_images
from tests.hostile.corpus import mutated
from tests.hostile.harness import run_hostile

MEGABYTES = 200
DEEP = 100_000
NAMES = (
    "a.jpg",
    "../a.jpg",
    "/etc/passwd",
    "https://host/a.jpg",
    "",
    " ",
    "~/a",
    "a\0b",
    "é.png",
    "\ud800",
    "x" * 5000,
)
ODD = (
    None,
    True,
    1,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    10**400,
    [],
    {},
    [[1]],
    {"path": "a"},
    "",
    "\u202e",
    "=1+1",
)
KEYS = ("path", "file", "label", "path ", "Path", "", "index", "__class__", "\ufeffpath", "a,b", "\n", "\ud800")


def csv_text(rng):
    columns = rng.choices(KEYS[:9], k=rng.randint(0, 4)) + ["path"] * rng.randint(0, 2)
    mark, end = rng.choice((",", ",", ",", ";", "\t")), rng.choice(("\n", "\n", "\r\n", "\r"))
    rows = [columns]
    for _ in range(rng.randint(0, 6)):
        quoted = ('"%s"', '"%s', '%s"', "%s", '""%s""', '"a\n%s"')
        rows.append([rng.choice(quoted) % rng.choice(NAMES) for _ in columns] + [""] * rng.choice((0, 0, 0, 1)))
    return end.join(mark.join(map(str, row)) for row in rows)


def jsonl_text(rng):
    lines = []
    for _ in range(rng.randint(0, 6)):
        row = {rng.choice(KEYS): rng.choice((*ODD, *NAMES)) for _ in range(rng.randint(0, 4))}
        row |= {"path": rng.choice(NAMES)} if rng.random() < 0.7 else {}
        line = json.dumps(row)
        lines.append(rng.choice((line, line, line, line[:-1], line + line, line.replace("{", '{"path": "b", '))))
    special = (
        "[" * DEEP,
        '{"a":' * DEEP,
        '{"path": ' + "9" * 5000 + "}",
        '{"path": "a" * 2}',
        "null",
        "\0",
        "//",
        "\x85",
    )
    if rng.random() < 0.2:
        lines.insert(rng.randint(0, len(lines)), rng.choice(special))
    return rng.choice(("\n", "\n", "\r\n", "\n\n")).join(lines)


def make(case, folder):
    rng = random.Random(case)
    mild = rng.random() < 0.5
    ending = rng.choice((".csv", ".jsonl", ".JSONL", ".Csv"))
    text = (csv_text if ending.lower() == ".csv" else jsonl_text)(rng)
    if mild:
        names = [rng.choice(NAMES[:8]) or "b" for _ in range(9)]
        rows = [json.dumps({"path": name, rng.choice("ab"): rng.choice(ODD[:4])}) for name in names]
        text = "\n".join(["path,label", *(f'"{name}",1' for name in names)] if ending.lower() == ".csv" else rows)
    data = rng.choice((b"", b"\xef\xbb\xbf") if mild else (b"", b"", b"\xff\xfe", b"\0")) + text.encode(
        "utf-8" if mild else rng.choice(("utf-8", "utf-16", "latin-1")), "backslashreplace"
    )
    path = folder / f"{rng.choice(('list', 'a b', 'ü'))}{ending}"
    path.write_bytes(mutated(data, rng) if rng.random() < 0.5 else data)
    return rng.random() < 0.5, path


def target(made, folder):
    alone, path = made
    if alone:
        listing, columns = read_manifest(path)
        assert all(len(values) == len(listing) for values in columns.values())
        assert all(os.path.isabs(each) for each in listing)
    else:
        source = open_images([path, str(path)])
        assert len(source) == 2 * len(read_manifest(path, keep=())[0])
        source.path(len(source) - 1)


def test_a_few_hundred_manifests(tmp_path):
    report = run_hostile(target, range(300), make=make, seconds=20, megabytes=MEGABYTES, sandbox=tmp_path)
    assert min(report.taken, report.reasons.total()) > 15


@pytest.mark.long
@pytest.mark.parametrize("count", [25_000])
def test_many_manifests(count, tmp_path):
    run_hostile(target, range(count), make=make, seconds=20, megabytes=MEGABYTES, sandbox=tmp_path)


LARGE = {
    "a line without end.csv": lambda: b"path,note\n" + b"x" * 30_000_000,
    "a line without end.jsonl": lambda: b'{"path": "' + b"x" * 30_000_000,
    "quotes without end.csv": lambda: b'path,note\na,"' + b"x\n" * 8_000_000,
    "a million columns.csv": lambda: b"path," + b",".join(b"%d" % number for number in range(140_000)) + b"\n",
    "a new key each row.jsonl": lambda: b"".join(b'{"path": "a", "%d": 1}\n' % number for number in range(30_000)),
    "names of columns.csv": lambda: b",".join([b"x" * 1000] * 900) + b"\n",
    "a value.jsonl": lambda: b'{"path": ["' + b"x" * 900_000 + b'"]}',
    "brackets.jsonl": lambda: b'{"path": ' + b"[" * 900_000,
    "digits.jsonl": lambda: b'{"path": ' + b"9" * 900_000 + b"}",
    "half a character.jsonl": lambda: b'{"path": "\\ud800"}',
}


def test_large_and_deep_ones_are_refused_in_little_memory(tmp_path):
    def make_large(name, folder):
        (folder / name).write_bytes(LARGE[name]())
        return folder / name

    def reader(path, folder):
        read_manifest(path)

    report = run_hostile(reader, list(LARGE), make=make_large, seconds=30, megabytes=25, sandbox=tmp_path, life=1)
    assert report.taken == 0


ODD_SPECS = ["~nobody-of-that-name/x.csv", "~nobody-of-that-name", "a\0.csv", "a\0", "://", "[::", "x" * 5000, "\udcff"]
ODD_SPECS += ["procedural://9?size=" + "9" * 5000, "procedural://" + "9" * 30, "procedural://1?size=100000000"]
ODD_SPECS += ["http://[::1", "s3://a/b.csv"]


@pytest.mark.parametrize("spec", ODD_SPECS, ids=lambda spec: ascii(spec)[:30])
def test_odd_names_of_what_to_read_are_refused_in_one_line(spec):
    with pytest.raises((ValueError, OSError)) as caught:
        len(open_images(spec))
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, UnicodeError)


def test_a_tree_of_links_to_one_another_ends(tmp_path):
    def tree(levels, folder):
        for level in range(levels):
            (folder / f"{level}").mkdir()
            (folder / f"{level}" / "a.jpg").touch()
            for name in ("x", "y"):
                (folder / f"{level}" / name).symlink_to(f"../{level + 1}")
        (folder / f"{levels}").mkdir()
        return folder

    report = run_hostile(
        lambda folder, _: len(ImageListing.scan(folder / "0")),
        [4, 40],
        make=tree,
        seconds=20,
        megabytes=50,
        sandbox=tmp_path,
    )
    assert (report.taken, report.reasons.total()) == (1, 1)
    assert len(ImageListing.scan(tree(4, tmp_path) / "0")) == 15


def test_a_tree_deeper_than_a_path_may_be_is_left_out(tmp_path):
    (tmp_path / "a.jpg").touch()
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(40):
        os.mkdir("d" * 200, dir_fd=place)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    with pytest.warns(UserWarning, match="images are left out: cannot list folder") as told:
        assert list(ImageListing.scan(tmp_path)) == [str(tmp_path / "a.jpg")]
    assert len(str(told[0].message)) < 1000


def test_a_folder_that_vanishes_while_it_is_listed_is_left_out(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image.png").touch()
    real = os.scandir

    def scandir(folder):
        if os.fsdecode(folder) == str(tmp_path / "b"):
            raise FileNotFoundError(2, "No such file or directory")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert list(ImageListing.scan(tmp_path)) == [str(tmp_path / "a" / "image.png")]


def test_loops_and_odd_names_are_listed_as_they_are(tmp_path):
    names = [b"a\nb.jpg", b"\xff\xfe.png", b"x" * 251 + b".gif", b" .bmp", b"loop.png", b"dangling.webp"]
    for name in names[:4]:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "dangling.webp").symlink_to("nothing")
    (tmp_path / "round").symlink_to(".")
    os.mkfifo(tmp_path / "fifo.jpg")
    found = {os.path.basename(os.fsencode(path)) for path in ImageListing.scan(tmp_path)}
    assert found == {*names, b"fifo.jpg"}
