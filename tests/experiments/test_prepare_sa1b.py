"""Shards of small pictures: whatever kills a start, the next ones end at the bytes of an unbroken run."""

import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.images.shards import ShardSource
from experiments.prepare_sa1b import read_part, sa1b
from experiments.tar_pictures import checked_name

ROOT = Path(__file__).parents[2]


def jpeg(number, height=48, width=72):
    rng = np.random.default_rng(number)
    pixels = cv2.resize(rng.integers(0, 256, (6, 9, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def add(archive, name, data=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data))


def write_tars(folder, tars=3, pictures=8):
    folder.mkdir(parents=True, exist_ok=True)
    for tar in range(tars):
        with tarfile.open(folder / f"sa_{tar:03d}.tar", "w") as archive:
            for number in range(tar * pictures, (tar + 1) * pictures):
                add(archive, f"./sa_{number}.jpg", jpeg(number))
                add(archive, f"./sa_{number}.json", b"{}")
    return folder


def tree(folder):
    """All files that are not hidden, by name, with their bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sa1b")
    sa1b([write_tars(folder / "tars")], folder / "out", size=24, workers=2)
    return folder


def test_every_picture_is_in_the_index_at_its_size(made):
    source = ShardSource(made / "out")
    assert sorted(source.names) == sorted(f"sa_{number}.jpg" for number in range(24))
    for position in (0, 7, 8, 23):
        number = int(source.names[position][3:-4])
        whole = cv2.imdecode(np.frombuffer(jpeg(number), np.uint8), cv2.IMREAD_COLOR_RGB)
        wanted = cv2.resize(whole, (36, 24), interpolation=cv2.INTER_AREA)
        got = source.read(position)
        assert got.shape == (24, 36, 3)
        assert np.abs(got.astype(int) - wanted).mean() < 4
        assert source.path(position).endswith(f".tar/sa_{number}.jpg")


def test_shards_are_ordinary_tar_files_with_true_checksums(made):
    for line in (made / "out" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        data = (made / "out" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert len([Image.open(archive.extractfile(member)).size for member in archive]) == 8


def test_an_index_entry_is_the_whole_member(made):
    about = json.loads((made / "out/shards/000001.json").read_text())
    with tarfile.open(made / "out/shards/000001.tar") as archive:
        offsets = [(member.offset_data, member.size) for member in archive]
    assert offsets == [(row["offset"], row["length"]) for row in about["images"]]


def test_a_killed_preparation_ends_at_the_bytes_of_an_unbroken_one(made, tmp_path):
    write_tars(tmp_path / "tars", tars=4, pictures=60)
    sa1b([tmp_path / "tars"], tmp_path / "unbroken", size=24, workers=1)
    code = (
        "import sys; from pathlib import Path; from experiments.prepare_sa1b import sa1b\n"
        f"sa1b([Path({str(tmp_path / 'tars')!r})], Path({str(tmp_path / 'killed')!r}), size=24, workers=2)"
    )
    kills = 0
    for patience in (0.0, 0.05, 0.02):
        started = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
        # Killed in the middle of its work: while a shard is half written.
        while started.poll() is None and not list((tmp_path / "killed/shards").glob(".*.tar.*.part")):
            time.sleep(0.002)
        time.sleep(patience)
        started.send_signal(signal.SIGKILL)
        kills += started.wait() == -signal.SIGKILL
    assert kills >= 2
    assert not (tmp_path / "killed/index").exists() or kills == 2
    unbroken = tree(tmp_path / "unbroken")
    sa1b([tmp_path / "tars"], tmp_path / "killed", size=24, workers=2)
    assert tree(tmp_path / "killed") == unbroken
    assert not list((tmp_path / "killed/shards").glob(".*.part"))


def test_parts_join_to_what_one_start_makes(made, tmp_path, capsys):
    tars, before = made / "tars", tree(made / "out")
    for part in ("2/3", "1/3"):
        sa1b([tars], tmp_path / "out", size=24, part=part, workers=1)
        assert not (tmp_path / "out/index").exists()
    assert "1 shards of other parts are missing" in capsys.readouterr().out
    sa1b([tars], tmp_path / "out", size=24, part="3/3", workers=1)
    assert tree(tmp_path / "out") == before


def test_hostile_and_damaged_members_are_listed_and_never_written(tmp_path):
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        add(archive, "/etc/passwd.jpg", jpeg(0))
        add(archive, "a/../../out.jpg", jpeg(1))
        add(archive, "link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "hard.jpg", type=tarfile.LNKTYPE, linkname="good.jpg")
        add(archive, "device.jpg", type=tarfile.CHRTYPE)
        add(archive, "good.jpg", jpeg(2))
        add(archive, "cut.jpg", jpeg(3)[:200])
        add(archive, "empty.jpg")
        add(archive, "text.png", b"no picture")
        add(archive, "good.jpg", jpeg(4))
    sa1b([tmp_path / "bad.tar"], tmp_path / "out", size=24, workers=1)
    source = ShardSource(tmp_path / "out")
    assert list(source.names) == ["good.jpg"]
    with (tmp_path / "out/left_out.csv").open() as file:
        reasons = {row["name"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons["/etc/passwd.jpg"] == "an absolute path"
    assert "climbs" in reasons["a/../../out.jpg"]
    assert {reasons[name] for name in ("link.jpg", "hard.jpg", "device.jpg")} == {"a link or a device"}
    assert "truncated" in reasons["cut.jpg"]
    assert reasons["empty.jpg"] == "the file is empty"
    assert "not an image" in reasons["text.png"]
    assert reasons["good.jpg"] == "its name came before"
    assert {path.name for path in tmp_path.iterdir()} == {"bad.tar", "out"}


def test_a_cut_tar_file_gives_what_is_whole(tmp_path):
    write_tars(tmp_path / "tars", tars=1)
    tar = tmp_path / "tars/sa_000.tar"
    os.truncate(tar, 6 * 2048)
    sa1b([tar], tmp_path / "out", size=24, workers=1)
    assert 0 < len(ShardSource(tmp_path / "out")) < 8
    assert "the tar file ends here" in (tmp_path / "out/left_out.csv").read_text()


def test_folders_are_cut_into_shards_and_squashed(tmp_path):
    for number in range(5):
        path = tmp_path / f"photos/{number % 2}/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    sa1b([tmp_path / "photos"], tmp_path / "out", size=16, frame="squash", images_per_shard=2, workers=1)
    source = ShardSource(tmp_path / "out")
    assert list(source.names) == ["0/0.jpg", "0/2.jpg", "0/4.jpg", "1/1.jpg", "1/3.jpg"]
    assert len(source.index.shard_names) == 3
    assert source.read(4).shape == (16, 16, 3)


def test_what_a_user_gets_wrong_is_one_line(made, tmp_path):
    with pytest.raises(ValueError, match="begun with other inputs or settings"):
        sa1b([made / "tars"], made / "out", size=32)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        sa1b([tmp_path / "absent"], tmp_path / "out")
    for part in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(ValueError, match="--part must be i/n"):
            read_part(part)


def test_a_changed_shard_is_found_before_it_is_joined(tmp_path):
    write_tars(tmp_path / "tars", tars=2)
    sa1b([tmp_path / "tars"], tmp_path / "out", size=24, workers=1)
    os.truncate(tmp_path / "out/shards/000001.tar", 1024)
    with pytest.raises(ValueError, match=r"000001\.tar is missing or was changed: delete .*000001\.json"):
        sa1b([tmp_path / "tars"], tmp_path / "out", size=24, workers=1)


def test_a_plain_member_is_taken():
    assert checked_name(tarfile.TarInfo("./a/b..c.jpg")) == ("a/b..c.jpg", None)
