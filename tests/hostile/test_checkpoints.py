"""Hostile checkpoints: read as data in bounded memory and time, or refused in one line; nothing in them runs."""

import argparse
import io
import itertools
import pickle
import pickletools
import random
import struct
import warnings
import zipfile
from collections import OrderedDict
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from callbacks.checkpoint_files import AtomicCheckpointIO, newest_checkpoint
from experiments.export import load_module
from lightning_modules.base import ProvenanceModule
from lightning_modules.functional.plain_pickles import DEPTH, load_plain
from lightning_modules.masksim.module import MaskSimModule
from lightning_modules.masksim.published import detector_of, holds_published, read_denoiser, read_detector
from lightning_modules.syncseal.module import SyncSealModule
from lightning_modules.syncseal.published import is_published, network_arguments, read_published
from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule
from lightning_modules.weights import load_weights, read_metadata, read_weights
from tests.hostile.corpus import mutated
from tests.hostile.harness import run_hostile

MEGABYTES = 200
GADGETS = [
    *(
        "os system",
        "posix system",
        "nt system",
        "subprocess Popen",
        "builtins eval",
        "builtins exec",
        "__builtin__ eval",
    ),
    *("builtins getattr", "builtins __import__", "builtins bytearray", "builtins open", "_codecs encode", "io open"),
    *("torch.hub load", "torch load", "torch.storage _load_from_bytes", "torch.serialization load", "runpy run_path"),
    *("torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_qtensor", "torch._utils _rebuild_nested_tensor"),
    *("torch._utils _rebuild_meta_tensor_no_storage", "torch._utils _rebuild_wrapper_subclass", "torch FloatTensor"),
    *("torch._tensor _rebuild_from_type_v2", "torch._utils _rebuild_parameter_with_state", "torch Tensor"),
    *("copyreg _reconstructor", "copy_reg _reconstructor", "numpy._core.multiarray _reconstruct", "numpy dtype"),
    *("torch.jit load", "ctypes CDLL", "importlib import_module", "functools partial", "operator attrgetter", "a\nb c"),
    *("argparse Namespace", "collections OrderedDict", "collections Counter", "torch Size", "torch FloatStorage"),
    *(
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch.storage UntypedStorage",
        "torch device",
    ),
]
NUMBERS = (-(2**62), -1, 0, 1, 3, 4, 5, 100, 2**31, 2**32 + 1, 2**40, 2**62, 2**63 - 1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)

    def forward(self, x):
        return self.conv(x)


class Storage:
    """Stands for a torch storage in a pickle: any kind, record and claimed length."""

    def __init__(self, count, key="0", kind="FloatStorage"):
        self.count, self.key, self.kind = count, key, kind


class Claim:
    """A tensor that says of itself what it likes."""

    def __init__(self, storage, offset=0, size=(4,), stride=(1,), rebuild="_rebuild_tensor_v2"):
        self.parts = (storage, offset, tuple(size), tuple(stride), False, OrderedDict())
        self.rebuild = rebuild

    def __reduce__(self):
        return getattr(torch._utils, self.rebuild), self.parts


class Covered:
    """An ordered dictionary that says of itself what `items` and `keys` are."""

    def __reduce__(self):
        return OrderedDict, (), {"items": 3, "keys": 3}, None, iter([("conv.weight", Claim(Storage(4)))])


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            return "storage", getattr(torch, value.kind, torch.FloatStorage), value.key, "cpu", value.count
        return None


def described(content):
    stream = io.BytesIO()
    Pickler(stream, 2).dump(content)
    return stream.getvalue()


def archive(description, records=(("0", bytes(range(16))),), compression=zipfile.ZIP_STORED, more=(), comment=b""):
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", compression) as file:
        warnings.simplefilter("ignore")  # entries of one name are meant
        file.writestr("a/data.pkl", description)
        file.writestr("a/byteorder", "little")
        for key, data in records:
            file.writestr(f"a/data/{key}", data)
        for name, data in more:
            file.writestr(name, data)
        file.writestr("a/version", "3\n")
        file.comment = comment
    return stream.getvalue()


@lru_cache
def seeds():
    """Files as they should be: of a run, of weights, with a Namespace, of a published layout, each in both formats."""
    state = Net().state_dict()
    run = {"epoch": 1, "global_step": 2, "pytorch-lightning_version": "2.6.6", "state_dict": state, "loops": {}}
    run |= {
        "callbacks": {},
        "optimizer_states": [{"state": {}, "param_groups": [{"params": [0]}]}],
        "lr_schedulers": [],
    }
    run |= {"hyper_parameters": {"threshold": None, "lr": 1e-3}, "calibration": {"threshold": 0.5}}
    published = {"model": state, "args": "scaling_w: 0.2\nimg_size: 32\n", "epoch": 3, "discriminator": {}}
    contents = [run, state, {"network": state, "args": argparse.Namespace(lr=1)}, published]
    found = []
    for content in contents:
        for new in (True, False):
            stream = io.BytesIO()
            torch.save(content, stream, _use_new_zipfile_serialization=new)
            found.append(stream.getvalue())
    return found


def odd_value(rng, depth=0):
    """A value of any type, where one of another is expected."""
    turn = rng.randrange(14 if depth < 3 else 10)
    if turn < 10:
        plain = (None, True, -1, 10**308, float("nan"), float("-inf"), "abc", b"\xff", "x" * 3000, "\x1b[31m\n")
        return plain[turn]
    if turn == 10:
        return {rng.choice(("a", 7, None, ("b", 1), 2.5)): odd_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    if turn == 11:
        return torch.zeros(rng.choice((0, 1, 3)), dtype=rng.choice((torch.float32, torch.complex64, torch.bool)))
    inner = [odd_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return inner if turn == 12 else tuple(inner)


def misshapen(rng):
    """A checkpoint in which some entries are of wrong types."""
    calibration = {"threshold": 0.5, "scaling_w": 0.1, "reliability": None, "format": 1.0, "generators": ["a", "b"]}
    calibration |= {
        "scores": torch.rand(3, 2),
        "scale": torch.ones(2),
        "offset": torch.zeros(2),
        "limits": [0.01, 0.05],
    }
    numbers = (
        "absent_up_to",
        "reliable_up_to",
        "rate",
        "tolerance",
        "unmarked",
        "marked",
        "refinements",
        "orientations",
    )
    reliability = dict.fromkeys(numbers, 1) | {"score": "presence"}
    content = {"epoch": 1, "global_step": 1, "state_dict": dict(Net().state_dict()), "hyper_parameters": {"lr": 1}}
    content |= {"calibration": calibration | {"fitted": [True, False], "reliability": reliability}}
    content |= {"model": dict(content["state_dict"]), "args": "scaling_w: 0.2", "network": {}, "discriminator": {}}
    places = [
        content,
        calibration,
        reliability,
        content["calibration"],
        content["state_dict"],
        content["hyper_parameters"],
    ]
    for _ in range(rng.randint(1, 3)):
        place = rng.choice(places)
        place[rng.choice((*place, "new", 3))] = odd_value(rng)
    stream = io.BytesIO()
    torch.save(rng.choice((content, content, [content], odd_value(rng))), stream)
    return stream.getvalue()


def claiming(rng):
    """A tensor whose size, stride, offset, type or storage are not what the file has."""

    def number():
        return rng.choice(NUMBERS)

    storage = Storage(rng.choice((4, 4, number())), rng.choice(("0", "0", "1", "../0")), rng.choice(tuple(KINDS)))
    axes = rng.randrange(4)
    size, stride = ([rng.choice((1, 2, 4, number())) for _ in range(axes)] for _ in range(2))
    claim = Claim(
        storage, rng.choice((0, 0, number())), size, stride, rng.choice(("_rebuild_tensor_v2", "_rebuild_tensor"))
    )
    if claim.rebuild == "_rebuild_tensor":
        claim.parts = claim.parts[:4]
    return archive(described({"w": claim, "conv.weight": claim, "clf_a": claim, "mask_pre_activ_list.0": claim}))


KINDS = (
    "FloatStorage",
    "DoubleStorage",
    "HalfStorage",
    "ByteStorage",
    "BoolStorage",
    "ComplexFloatStorage",
    "QInt8Storage",
)


def calling(rng):
    """A pickle that imports and calls, by instructions in an order of chance."""
    body = bytearray(b"\x80\x02")
    for _ in range(rng.randint(2, 20)):
        module, name = rng.choice(GADGETS).rsplit(" ", 1)
        push = rng.randrange(9)
        if push < 3:
            body += f"c{module}\n{name}\n".encode()
        elif push == 3:
            body += b"X" + struct.pack("<I", 14) + b"touch executed"
        elif push == 4:
            body += b"J" + struct.pack("<i", rng.choice((-1, 4, 2**31 - 1))) + rng.choice((b"", b"\x85R"))
        elif push == 5:
            body += (
                b"(" + rng.choice((b")", b"]", b"}", b"N")) * rng.randrange(3) + rng.choice((b"t", b"u", b"e", b"l"))
            )
        elif push == 6:
            body += rng.choice((b"R", b"b", b"\x81", b"\x85", b"\x86R", b"Q", b"a", b"s", b"\x93", b")R", b"}b"))
        elif push == 7:
            body += rng.choice(
                (b"q\x00", b"h\x00", b"r" + struct.pack("<I", rng.choice((1, 2**31))), b"\x8a\xff" + b"\x7f" * 255)
            )
        else:
            body += rng.choice(
                (b"\x96" + struct.pack("<Q", 2**40), b"\x82\x01", b"i os\nsystem\n", b"P1\n", b"0", b"2")
            )
    return (archive if rng.random() < 0.7 else legacy)(bytes(body) + rng.choice((b".", b"s.", b"R.", b"")))


def legacy(description):
    """Torch's format before archives: number, version, system, content, keys; then numbers."""
    stream = io.BytesIO(seeds()[1])
    for _ in range(3):
        for _ in pickletools.genops(stream):
            pass
    return seeds()[1][: stream.tell()] + description + b"\x80\x02]q\x00."


def nested(rng):
    """Containers in containers, and ones that hold themselves."""
    count = rng.choice((DEPTH - 5, DEPTH + 5, 5_000, 100_000))
    kind = rng.randrange(4)
    if kind == 0:
        return archive(b"\x80\x02" + b"]" * count + b"a" * (count - 1) + b".")
    if kind == 1:
        return archive(b"\x80\x02}X\x01\x00\x00\x00a" + b"\x85" * count + b"s.")
    if kind == 2:
        return archive(b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dicth\x00s.")
    return archive(b"\x80\x02" + b"}" * count + b".")


def packed_oddly(rng):
    """Archives that unpack to more than they are, or tell things twice."""
    whole = described({"w": Claim(Storage(4))})
    turn = rng.randrange(8)
    if turn == 0:
        return archive(whole, (("0", b"\0" * (32 << 20)),), zipfile.ZIP_DEFLATED)
    if turn == 1:
        return archive(b"\x80\x02" + b"]" * (32 << 20) + b".", compression=zipfile.ZIP_DEFLATED)
    if turn == 2:
        return archive(
            whole, more=[("a/data.pkl", b"\x80\x02cos\nsystem\n."), ("b/data.pkl", whole)][: rng.randint(1, 2)]
        )
    if turn == 3:
        return archive(whole, more=[(rng.choice(("/etc/evil", "../../evil", "a/../../evil", "a/\0evil")), b"x")])
    if turn == 4:
        return archive(whole, comment=b"PK\x05\x06" + bytes(18))
    if turn == 5:  # a directory for zipfile and another for torch
        claims = b"\x80\x02cbuiltins\nbytearray\nJ\0\0\0\x40\x85R."
        return archive(claims.ljust(len(whole), b"\0"))[:-22] + archive(whole)
    data = bytearray(archive(whole))
    if turn == 6:  # sizes in the central directory
        place = data.rindex(b"PK\x01\x02")
        data[place + 20 : place + 28] = struct.pack("<II", *(rng.choice((0, 1, 2**31, 2**32 - 1)) for _ in range(2)))
        return bytes(data)
    return bytes(data[: rng.randrange(len(data))])


def make(case, folder):
    rng = random.Random(case)
    turn = rng.randrange(20)
    if turn < 7:
        data = mutated(rng.choice(seeds()), rng)
    elif turn == 7 and case % 5:
        data = packed_oddly(rng)
    elif turn == 8 and case % 5:
        data = nested(rng)
    else:
        data = rng.choice((misshapen, claiming, calling))(rng)
    path = folder / rng.choice(("w.ckpt", "w.pth", "w.pt"))
    path.write_bytes(data)
    return rng.randrange(9), path


def target(made, folder):
    turn, path = made
    if turn < 2:
        tensors, metadata = read_weights(path)
        for value in tensors.values():
            assert value.numel() * value.element_size() <= path.stat().st_size
            value.double().sum()  # touches every number
        metadata.get("hyper_parameters", {}).keys()
    elif turn == 2:
        load_weights(Net(), path, strict=path.stat().st_size % 2 == 0)
    elif turn == 3:
        metadata = read_metadata(path)
        for module in restorers():
            module(metadata)
    elif turn == 4:
        content = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
        for module in (*restorers(), lambda content: ProvenanceModule.on_load_checkpoint(SimpleNamespace(), content)):
            module(content)
    elif turn == 5:
        newest_checkpoint(folder)
    elif turn == 6:
        holds_published(str(path))
        read_detector(path)
    elif turn == 7:
        read_denoiser(path)
    else:
        is_published(path)
        network_arguments(read_published(path))


def restorers():
    """What modules take from a file beside its tensors."""
    watermark = SimpleNamespace(hparams={"threshold": None})
    masksim = SimpleNamespace(generators=("a", "b"))
    sync = SimpleNamespace(scaling=SimpleNamespace(shape="cosine"), network=SimpleNamespace())
    pairs = ((WatermarkSegmentationModule, watermark), (MaskSimModule, masksim), (SyncSealModule, sync))
    return [lambda metadata, kind=kind, self=self: kind.restore_metadata(self, metadata) for kind, self in pairs]


def fuzz(cases, tmp_path):
    seeds()
    return run_hostile(target, cases, seconds=60, megabytes=MEGABYTES, sandbox=tmp_path, make=make)


def test_a_few_hundred_hostile_checkpoints(tmp_path):
    report = fuzz(range(150), tmp_path)
    assert len(report.reasons) > 5  # refused at many places, not at one


@pytest.mark.long
def test_many_hostile_checkpoints(tmp_path):
    fuzz(range(1000, 21_000), tmp_path)


def claimed(*parts, **rest):
    return archive(described({"w": Claim(*parts, **rest)}))


def test_what_torch_itself_would_take_or_run_is_refused_by_name(tmp_path):
    """On torch's own list, but of no use in weights: memory by a number, time by a square, tensors validated late."""
    path = tmp_path / "w.ckpt"
    calls = {
        "builtins.bytearray": b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        "_codecs.encode": b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x08\x00\x00\x00punycode\x86R.",
        "torch.FloatTensor": b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R.",
        "torch._utils._rebuild_sparse_tensor": b"ctorch._utils\n_rebuild_sparse_tensor\n.",
        "posix.system": b"cposix\nsystem\nX\x0e\x00\x00\x00touch executed\x85R.",
    }
    for name, body in calls.items():
        for form in (archive, legacy):
            path.write_bytes(form(b"\x80\x02" + body))
            with pytest.raises(ValueError, match=f"would execute {name}"):
                load_plain(path)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            lambda: archive(described({"w": Claim(Storage(4), size=(2**40,), stride=(0,))})),
            "of fewer numbers than that",
        ),
        (lambda: claimed(Storage(5)), "is not a whole weight file"),
        (lambda: claimed(Storage(10**12)), "is not a whole weight file"),
        (lambda: claimed(Storage(4), -100), "is not a whole weight file"),
        (lambda: claimed(Storage(4), size=(2**62, 2**62)), "is not a whole weight file"),
        (
            lambda: archive(described({"w": Claim(Storage(2, kind="ComplexFloatStorage"), size=(2,))})),
            "no weights have",
        ),
        (lambda: archive(described({}), compression=zipfile.ZIP_DEFLATED), "its archive is compressed"),
        (lambda: archive(described({}), comment=b"x"), "its archive is compressed or has a comment"),
        (lambda: archive(described({}), more=[("a/data.pkl", b"")]), "comes twice"),
        (lambda: archive(b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."), "more than 100 deep"),
        (lambda: archive(b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b"."), "more than 64 bits"),
        (lambda: legacy(described({"w": 1}))[:20] + b"\x80\x02", "is not a whole weight file"),
    ],
)
def test_files_that_claim_what_they_do_not_hold_are_refused(tmp_path, data, told):
    path = tmp_path / "w.ckpt"
    path.write_bytes(data())
    with pytest.raises(ValueError, match=told):
        load_plain(path)


def test_methods_that_a_file_covers_up_are_not_called(tmp_path):
    (tmp_path / "w.ckpt").write_bytes(archive(described({"state_dict": Covered()})))
    assert list(read_weights(tmp_path / "w.ckpt")[0]) == ["conv.weight"]


def test_names_that_are_no_texts_are_left_out_or_refused(tmp_path):
    torch.save({3: torch.zeros(1), "w": torch.zeros(1)}, tmp_path / "w.pt")
    assert list(read_weights(tmp_path / "w.pt")[0]) == ["w"]
    for odd in ([1], {3: 1}, "lr", 4):
        torch.save({"state_dict": {"w": torch.zeros(1)}, "hyper_parameters": odd}, tmp_path / "w.pt")
        with pytest.raises(ValueError, match="`hyper_parameters` is no mapping of names"):
            read_metadata(tmp_path / "w.pt")


@pytest.mark.parametrize("threshold", ["high", float("nan"), 10**308, -0.1, None, [0.5]])
def test_a_threshold_that_is_none_is_refused(threshold):
    with pytest.raises(ValueError, match="the calibration that came with the weights cannot be used"):
        restorers()[0]({"calibration": {"threshold": threshold}})


def test_a_published_file_of_hostile_yaml_is_refused(tmp_path):
    bomb = "a: &a {x: 1}\n" + "".join(
        f"{b}: &{b} {{<<: [*{a}, *{a}]}}\n" for a, b in itertools.pairwise("abcdefghij" * 3)
    )
    for text in (bomb, "[" * 3000, "a: 2001-99-99", "x" * 200_000, "!!python/object/apply:os.system [ls]"):
        torch.save({"model": Net().state_dict(), "args": text}, tmp_path / "w.pt")
        with pytest.raises(ValueError, match="its `args` are no"):
            read_published(tmp_path / "w.pt")


def test_shapes_that_a_network_would_take_memory_for_are_refused_first(tmp_path):
    """A published detector tells by its shapes what is built."""
    wide = torch.zeros(1).expand(3, 10**6, 10**6)
    with pytest.raises(ValueError, match="is no whole published MaskSim detector: it does not fit"):
        detector_of(
            {"clf_a": torch.zeros(1), "mask_pre_activ_list.0": wide, "mask_conv.weight": torch.zeros(3, 1, 3, 3)}, "x"
        )


def test_a_checkpoint_names_no_program_to_load(tmp_path):
    """Its hyper-parameters may say which module made it, not which TorchScript file that module runs."""
    program = tmp_path / "evil.pt"
    torch.jit.save(torch.jit.script(Net()), program)
    hparams = {"_class_path": "lightning_modules.syncseal.baselines.SyncBaselineModule", "method": "wam"}
    torch.save(
        {"state_dict": Net().state_dict(), "hyper_parameters": hparams | {"wam": str(program)}}, tmp_path / "w.ckpt"
    )
    with pytest.raises(FileNotFoundError, match=r"model\.wam must name"):
        load_module(tmp_path / "w.ckpt")
