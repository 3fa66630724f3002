import os
import pickle

import pytest
import torch
from torch import nn

from lightning_modules.weights import load_weights, read_metadata, save_weights


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("wrapped", [False, True])
def test_pickled_tensors_load(tmp_path, wrapped):
    source, target = Net(), Net()
    state = source.state_dict()
    torch.save({"state_dict": state, "calibration": {"threshold": 0.3}} if wrapped else state, tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    assert same(source, target)
    assert report.loaded == len(state)
    assert report.metadata == ({"calibration": {"threshold": 0.3}} if wrapped else {})


@pytest.mark.parametrize("half", [False, True])
def test_safetensors_round_trip_with_metadata(tmp_path, half):
    source, target = Net(), Net()
    nn.init.normal_(source.norm.weight)
    metadata = {"hyper_parameters": {"encoder": "resnet18", "channels": [1, 2]}, "licence": "MIT"}
    save_weights(source, tmp_path / "new" / "w.safetensors", metadata, half=half)
    load_weights(target, tmp_path / "new" / "w.safetensors")
    assert read_metadata(tmp_path / "new" / "w.safetensors") == metadata
    for key, value in target.state_dict().items():
        expected = source.state_dict()[key]
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected.half().to(expected.dtype) if half else expected)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["w.safetensors"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"old")
    with pytest.raises(TypeError):
        save_weights(Net(), file, {"bad": object()})
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_prefixes_and_functions_rename(tmp_path):
    source = Net()
    torch.save({f"module.{key}": value for key, value in source.state_dict().items()}, tmp_path / "w.pt")
    for key_map in ({"module.": ""}, lambda key: key.removeprefix("module.")):
        target = Net()
        load_weights(target, tmp_path / "w.pt", key_map=key_map)
        assert same(source, target)


def test_misfits_are_listed_in_one_line_and_change_nothing(tmp_path):
    state = Net(width=5).state_dict()
    del state["norm.weight"]
    state["extra.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pt")
    target = Net()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit Net") as error:
        load_weights(target, tmp_path / "w.pt")
    message = str(error.value)
    assert "\n" not in message
    assert "1 missing: norm.weight" in message
    assert "1 unexpected: extra.weight" in message
    assert "5 of another shape: conv.weight (5, 3, 3, 3) for (4, 3, 3, 3)" in message
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())
    report = load_weights(target, tmp_path / "w.pt", strict=False)
    assert (report.missing, report.unexpected, report.loaded) == (["norm.weight"], ["extra.weight"], 1)


def test_many_missing_keys_are_counted(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"7 missing: conv\.weight, .*, …; 1 unexpected: x"):
        load_weights(Net(), tmp_path / "w.pt")


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_a_pickle_that_would_execute_is_refused_by_name(tmp_path, kind):
    file, marker = tmp_path / "w.pth", tmp_path / "executed"
    content = {"state_dict": Net().state_dict(), "bomb": Bomb(marker)}
    if kind == "plain":
        file.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match="would execute") as error:
        load_weights(Net(), file)
    assert "posix.system" in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert not marker.exists()


def broken(tmp_path, kind):
    file = tmp_path / "w.pth"
    if kind == "folder":
        file.mkdir()
    elif kind == "empty":
        file.touch()
    elif kind == "text":
        file.write_text("this is no checkpoint")
    elif kind == "truncated":
        torch.save(Net().state_dict(), file)
        file.write_bytes(file.read_bytes()[:-200])
    elif kind == "list":
        torch.save([torch.zeros(1)], file)
    elif kind == "no tensors":
        torch.save({"epoch": 3}, file)
    elif kind == "safetensors":
        file = tmp_path / "w.safetensors"
        file.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not json")
    return file


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("folder", "is a folder"),
        ("empty", "is empty"),
        ("text", "is not a"),
        ("truncated", "is not a whole weight file"),
        ("list", "holds a list"),
        ("no tensors", "holds no tensors"),
        ("safetensors", "is not a whole safetensors file"),
    ],
)
def test_what_is_no_weight_file_is_said_in_one_line(tmp_path, kind, says):
    file = broken(tmp_path, kind)
    with pytest.raises(ValueError, match=says) as error:
        load_weights(Net(), file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        load_weights(Net(), tmp_path / "nowhere.pt")
