"""Hostile tar files: their pictures become shards, the rest is named in a list, and nothing is unpacked."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile

import numpy as np
import pytest

from datamodules.images.shards import ShardSource
from experiments.prepare_sa1b import Plan, make_shard
from experiments.shard_joining import join
from experiments.tar_pictures import read_pictures, read_whole
from tests.hostile.corpus import EDGES, hostile_image, mutated, seed_image
from tests.hostile.harness import run_hostile

MEGABYTES = 250
TYPES = b"01234567LKSxgXVDAMN\0\xff"
NAMES = (
    "a.jpg",
    "./b.png",
    "/etc/evil.jpg",
    "../evil.jpg",
    "x/../../evil.png",
    "..",
    "",
    "a" * 99 + ".jpg",
    "b" * 300 + ".png",
)
NAMES += (
    "é.jpg",
    "new\nline.jpg",
    "a.jpg/",
    "c:\\evil.jpg",
    "\x1b[2J.jpg",
    "folder/x.jpg",
    "a.json",
    "\udcff.jpg",
    "-rf.png",
)
PAX = {
    "path": ("../evil.jpg", "/evil.jpg", "p" * 3000 + ".jpg", "\0.jpg"),
    "size": ("-1", "99999999999999999999", "nan", "1e9", ""),
    "linkpath": ("/etc/passwd",),
    "mtime": ("nan", "inf", "-1e400", "x"),
    "uid": ("-1", "x"),
    "hdrcharset": ("BINARY", "x"),
    "GNU.sparse.major": ("1",),
    "GNU.sparse.minor": ("0",),
    "GNU.sparse.map": ("0,1,2", "1,x", "0," * 3000),
    "GNU.sparse.size": ("99999999999", "-1"),
    "GNU.sparse.name": ("../evil.jpg",),
    "GNU.sparse.realsize": ("-5", "1" * 30),
}


def tar_bytes(rng):
    """A tar file of odd members, with true checksums in their headers."""
    file = io.BytesIO()
    kind = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=file, mode="w", format=kind, errors="surrogateescape") as archive:
        for _ in range(rng.randint(0, 6)):
            data = rng.choice((seed_image, hostile_image))(rng)[1]
            member = tarfile.TarInfo(rng.choice(NAMES))
            if rng.random() < 0.3:
                member.type = bytes([rng.choice(TYPES)])
                member.linkname = rng.choice(("/etc/passwd", "../evil", "a.jpg", ""))
            if kind == tarfile.PAX_FORMAT and rng.random() < 0.4:
                keys = rng.sample(list(PAX), rng.randint(1, 4))
                member.pax_headers = {key: rng.choice(PAX[key]) for key in keys}
            member.size = len(data)
            try:
                header = member.tobuf(kind, "utf-8", "surrogateescape")
            except ValueError:  # a name that this format cannot hold
                header = tarfile.TarInfo("a.jpg").tobuf()
            padding = bytes(-len(data) % 512)
            archive.fileobj.write(_renumbered(header, rng) + data + padding)
            archive.offset = archive.fileobj.tell()
    return file.getvalue()


def _renumbered(header, rng):
    """A header whose size is another than what follows, now and then."""
    if rng.random() < 0.8:
        return header
    body = bytearray(header)
    size = rng.choice((*EDGES, -1, -512, 2**62))
    octal = b"%011o\0" % size if 0 <= size < 8**11 else (256**12 + size if size < 0 else size).to_bytes(13, "big")[-12:]
    body[-388:-376] = octal if 0 <= size < 8**11 else bytes([0xFF if size < 0 else 0x80]) + octal[1:]
    body[-364:-356] = b" " * 8
    body[-364:-356] = b"%06o\0 " % sum(body[-512:])
    return bytes(body)


def make(case, folder):
    rng = random.Random(case)
    data = tar_bytes(rng)
    if rng.random() < 0.4:
        data = mutated(data, rng)
    data = rng.choice((bytes, bytes, bytes, gzip.compress, bz2.compress, lzma.compress))(data)
    if rng.random() < 0.2:
        data = mutated(data, rng)
    path = folder / "photos.tar"
    path.write_bytes(data)
    (folder / "out" / "shards").mkdir(parents=True)
    return path


def target(path, folder):
    plan = Plan(16, "short", 90, [(str(path), 0, 0, path.stat().st_size)])
    output = folder / "out"
    make_shard(plan, output, 0)
    about = json.loads((output / "shards" / "000000.json").read_text())
    try:
        count, left_out = join(output, 1)
    finally:
        assert sorted(os.listdir(folder)) == ["out", "photos.tar"]
        assert {os.path.splitext(name)[1] for name in os.listdir(output / "shards")} == {".json", ".tar"}
    source = ShardSource(output)
    assert (len(source), left_out) == (len(about["images"]), len(about["left_out"]))
    assert {min(source.read(position).shape[:2]) for position in range(count)} == {16}


def test_a_few_tar_files(tmp_path):
    report = run_hostile(target, range(60), make=make, seconds=20, megabytes=MEGABYTES, sandbox=tmp_path)
    assert min(report.taken, report.reasons.total()) > 4


@pytest.mark.long
@pytest.mark.parametrize("count", [15_000])
def test_many_tar_files(count, tmp_path):
    run_hostile(target, range(count), make=make, seconds=30, megabytes=MEGABYTES, sandbox=tmp_path)


def member(name="a.jpg", size=0, kind=tarfile.REGTYPE, data=b""):
    info = tarfile.TarInfo(name)
    info.size, info.type = size or len(data), kind
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def zeros(megabytes):
    return (bytes(1 << 20) for _ in range(megabytes))


# Name: how it starts, how many megabytes of zeros follow (compressed, so that the file is small), and the reason.
BOMBS = {
    "a long name": (member(size=3 << 29, kind=tarfile.GNUTYPE_LONGNAME), 24, "a header that claims 1610612736 bytes"),
    "a pax header": (member(size=3 << 29, kind=tarfile.XHDTYPE), 24, "a header that claims 1610612736 bytes"),
    "a global header": (member(size=3 << 29, kind=tarfile.XGLTYPE), 24, "a header that claims 1610612736 bytes"),
    "a member": (member(size=3 << 29), 24, "it unpacks to more than 200 times its size"),
    "nested headers": (member("x", 5, tarfile.XHDTYPE, b"9 a=b") * 5000, 0, "more than 8 headers before a member"),
    "a sparse file": (member(kind=tarfile.GNUTYPE_SPARSE), 10, "a sparse file"),
    "a sparse map": (
        member("x", 0, tarfile.XHDTYPE, b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n") + member(data=b"9" * 10_000),
        10,
        "a sparse file",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_in_headers_take_no_memory_and_end_the_file(name, tmp_path):
    start, megabytes, reason = BOMBS[name]
    path = tmp_path / "bomb.tar"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(member("first.png", data=seed_image(random.Random(0))[1]) + start)
        for block in zeros(megabytes):
            file.write(block)

    def reader(path, folder):
        first, *rest = read_pictures(str(path))
        assert first[0] == "first.png"
        assert rest[-1] == ("bomb.tar", f"the tar file ends here: {reason}", 0)

    report = run_hostile(reader, [path], seconds=30, megabytes=12, sandbox=tmp_path)
    assert report.taken == 1


@pytest.mark.parametrize("size", [10**12, 2**62])
def test_a_size_beyond_the_end_is_not_walked_to(size, tmp_path):
    header = member("a.txt", size)
    hidden = b"25 GNU.sparse.realsize=5\n"  # another size than the one by which the next header is looked for
    path = tmp_path / "far.tar"
    path.write_bytes(member("x", 0, tarfile.XHDTYPE, hidden) + header)

    def reader(path, folder):
        assert [entry[1] for entry in read_pictures(str(path))][-1].startswith("the tar file ends here: ")

    assert run_hostile(reader, [path], seconds=10, megabytes=10, sandbox=tmp_path).taken == 1


def test_many_members_do_not_stay_in_memory(tmp_path):
    few, many = tmp_path / "few.tar", tmp_path / "many.tar"
    for path, count in ((few, 2), (many, 40)):
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(count):
                file.write(member("notes.txt") * 1000)

    def reader(path, folder):
        assert not list(read_pictures(str(path)))

    def after_few(path, folder):
        reader(few, folder)
        return path

    assert run_hostile(reader, [many], make=after_few, seconds=60, megabytes=12, sandbox=tmp_path).taken == 1


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo.tar")
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("fifo.tar", "folder.tar", "missing.tar"):
        (entry,) = read_pictures(str(tmp_path / name))
        assert entry[1].startswith("the tar file ends here: ")
    assert (
        read_whole(str(tmp_path / "fifo.tar")) == read_whole(str(tmp_path / "zero.jpg")) == "it is not a regular file"
    )
    assert read_whole(str(tmp_path / "missing.jpg")) == "No such file or directory"
    (tmp_path / "holes.jpg").touch()
    os.truncate(tmp_path / "holes.jpg", 1 << 40)
    assert read_whole(str(tmp_path / "holes.jpg")) == "it has 1099511627776 bytes"


INDEX = {
    "names": np.frombuffer(b"a.pngb.png", np.uint8),
    "name_ends": np.array([5, 10]),
    "shard": np.array([0, 0], np.int32),
    "offset": np.array([0, 0]),
    "length": np.array([100, 100], np.int32),
    "shard_names": np.frombuffer(b"0.tar", np.uint8),
    "shard_name_ends": np.array([5]),
}


def make_index(case, folder):
    """The index of a folder of shards, with arrays that are broken in what they hold or as files."""
    rng = random.Random(case)
    picture = seed_image(rng)[1]
    (folder / "shards").mkdir()
    (folder / "index").mkdir()
    (folder / "shards" / "0.tar").write_bytes(picture)
    for name, array in (INDEX | {"length": np.array([len(picture)] * 2, np.int32)}).items():
        changed = array.copy()
        if rng.random() < 0.1:
            changed[rng.randrange(len(changed))] = rng.choice((-1, 1, 2**31 - 1, 255)) % (
                256 if name.endswith("names") else 2**31
            )
        if rng.random() < 0.05:
            odd = (changed[:1], changed.astype(np.float64), changed[None], np.array([{}], object), changed.astype("S3"))
            changed = rng.choice(odd)
        file = io.BytesIO()
        np.save(file, changed, allow_pickle=True)
        data = mutated(file.getvalue(), rng) if rng.random() < 0.05 else file.getvalue()
        (folder / "index" / f"{name}.npy").write_bytes(data)
    return folder


def read_shards(folder, _):
    source = ShardSource(folder)
    for position in range(min(len(source), 3)):
        source.path(position)
        source.read(position, 8)


@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=pytest.mark.long)])
def test_damaged_indices_of_shards(count, tmp_path):
    report = run_hostile(read_shards, range(count), make=make_index, seconds=20, megabytes=60, sandbox=tmp_path)
    assert min(report.taken, report.reasons.total()) > 5
