"""Hostile TorchScript files, read as state: their code never runs, and their tensors are what the file has."""

import io
import random
import struct
import zipfile
from functools import lru_cache

import pytest
import torch
from torch import nn

from lightning_modules.syncseal.published import is_published, read_published
from lightning_modules.torchscript import is_torchscript, read_torchscript
from tests.hostile.corpus import mutated
from tests.hostile.harness import run_hostile


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.BatchNorm1d(2)

    def forward(self, x):
        return self.second(self.first(x))


@lru_cache
def seed():
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(Net().eval()), stream, {"sealmark.json": '{"scaling_w": 0.2, "img_size": 32}'})
    return stream.getvalue()


def repacked(change, compression=zipfile.ZIP_STORED):
    """The file with its entries changed by name and content."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(seed())) as old, zipfile.ZipFile(stream, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return stream.getvalue()


def part(name=b"Part"):
    return b"c__torch__\n" + name + b"\n)\x81"


def described(body):
    return repacked(lambda name, data: body if name.endswith("/data.pkl") else data)


def doubled(levels):
    """Modules that hold the next one twice: as many names as two to the power of their number."""
    body = b"\x80\x02" + part() + b"}X\x01\x00\x00\x00w" + tensor() + b"sb"
    for level in range(levels):
        place = bytes([level])
        body += b"q" + place + b"0" + part() + b"}(X\x01\x00\x00\x00ah" + place + b"X\x01\x00\x00\x00bh" + place + b"ub"
    return described(body + b".")


def tensor(count=4, offset=0, size=(2, 2), stride=(2, 1), key=b"0"):
    def number(value):
        return b"J" + struct.pack("<i", value)

    kind = b"ctorch\nFloatStorage\n"
    pid = b"(X\x07\x00\x00\x00storage" + kind + b"X" + struct.pack("<I", len(key)) + key + b"X\x03\x00\x00\x00cpu"
    shape = (b"(" + b"".join(map(number, size)) + b"t", b"(" + b"".join(map(number, stride)) + b"t")
    rest = b"\x89ccollections\nOrderedDict\n)Rt"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + pid
        + number(count)
        + b"tQ"
        + number(offset)
        + b"".join(shape)
        + rest
        + b"R"
    )


def odd_tensor(rng):
    def number():
        return rng.choice((-(2**31), -1, 0, 1, 2, 4, 5, 1000, 2**31 - 1))

    axes = rng.randrange(4)
    size, stride = ([number() for _ in range(axes)] for _ in range(2))
    made = tensor(number(), number(), size, stride, rng.choice((b"0", b"0", b"9", b"../0")))
    return described(b"\x80\x02" + part() + b"}X\x01\x00\x00\x00w" + made + b"sb.")


def calling(rng):
    names = (
        b"os\nsystem",
        b"builtins\neval",
        b"torch\nload",
        b"torch.jit._pickle\nbuild_intlist",
        b"__torch__.os\nsystem",
    )
    call = b"c" + rng.choice(names) + b"\n(X\x0e\x00\x00\x00touch executedtR"
    more = (b"r\xff\xff\xff\x7f", b"\x96" + struct.pack("<Q", 2**40), b"]" * 50_000 + b"a" * 49_999, b"ios\nsystem\n")
    tail = rng.choice((b"", b"", *more))
    return described(b"\x80\x02" + part() + b"}X\x01\x00\x00\x00w" + call + tail + b"sb.")


def cyclic():
    return described(b"\x80\x02" + part() + b"q\x00}X\x01\x00\x00\x00ah\x00sb.")


def facts(rng):
    texts = (b"[" * 20_000, b"[]", b"{", b'{"img_size": 1e400}', b'{"scaling_w": "x"}', b'{"img_size": 10000000000}')
    return repacked(lambda name, data: rng.choice(texts) if name.endswith("sealmark.json") else data)


def make(case, folder):
    rng = random.Random(case)
    turn = rng.randrange(12)
    makers = (
        *(lambda: odd_tensor(rng), lambda: odd_tensor(rng), lambda: calling(rng), lambda: facts(rng), cyclic),
        *(lambda: doubled(rng.choice((3, 30, 200))), lambda: repacked(lambda _, data: data, zipfile.ZIP_DEFLATED)),
    )
    data = makers[turn]() if turn < len(makers) else mutated(seed(), rng)
    path = folder / "w.pt"
    path.write_bytes(data)
    return rng.randrange(3), path


def target(made, folder):
    turn, path = made
    if turn == 0:
        is_torchscript(path)
        for value in read_torchscript(path).values():
            assert value.numel() * value.element_size() <= path.stat().st_size
            value.double().sum()
    elif turn == 1:
        is_published(path)
    else:
        read_published(path)


def fuzz(cases, tmp_path):
    seed()
    return run_hostile(target, cases, seconds=30, megabytes=200, sandbox=tmp_path, make=make)


def test_hundreds_of_hostile_programs(tmp_path):
    assert len(fuzz(range(100), tmp_path).reasons) > 3


@pytest.mark.long
def test_many_hostile_programs(tmp_path):
    fuzz(range(1000, 7_000), tmp_path)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (lambda: doubled(60), "is not a whole TorchScript file"),
        (cyclic, "is not a whole TorchScript file"),
        (lambda: described(b"\x80\x02" + part() + b"r\xff\xff\xff\x7f."), "is not a whole TorchScript file"),
        (lambda: described(b"\x80\x02cos\nsystem\n."), "would execute os.system"),
        (lambda: repacked(lambda _, data: data, zipfile.ZIP_DEFLATED), "archive is compressed"),
        (lambda: described(b"\x80\x02" + part() + b"."), "holds no tensors"),
    ],
)
def test_files_that_ask_for_too_much_are_refused(tmp_path, data, told):
    path = tmp_path / "w.pt"
    path.write_bytes(data())
    with pytest.raises(ValueError, match=told):
        read_torchscript(path)


def test_one_number_is_not_a_billion(tmp_path):
    path = tmp_path / "w.pt"
    wide = tensor(4, 0, (2**30,), (0,))
    path.write_bytes(described(b"\x80\x02" + part() + b"}X\x01\x00\x00\x00w" + wide + b"sb."))
    with pytest.raises(ValueError, match="is not a whole TorchScript file"):
        read_torchscript(path)


def test_a_whole_file_is_read(tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(seed())
    assert list(read_torchscript(path)) == list(Net().state_dict())
    path.write_bytes(doubled(2))
    assert list(read_torchscript(path)) == ["a.a.w", "a.b.w", "b.a.w", "b.b.w"]


def test_bytes_that_only_end_as_an_archive_are_none(tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(b"x" * 50 + seed()[-22:])
    assert not is_torchscript(path)
