"""Hostile safetensors: tensors, metadata and prompts of them, or one line."""

import json
import random
import struct

import pytest
import torch
from safetensors.torch import save
from torch import nn

from lightning_modules.seal2real.hub import find_model, read_config
from lightning_modules.seal2real.prompt_files import read_prompts
from lightning_modules.weights import load_weights, read_metadata, read_weights
from tests.hostile.corpus import mutated
from tests.hostile.harness import run_hostile

MEGABYTES = 200
DTYPES = ("F32", "F16", "F64", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "F128", "", 4, None)
NUMBERS = (-1, 0, 1, 3, 16, 17, 2**31, 2**63 - 1, 2**64, 10**30, 1.5, "4", None, True)
TEXTS = ("{}", "[1", "[" * 20_000, "9" * 5_000, "NaN", '{"threshold": NaN}', "null", "\x1b[2J", '"' + "x" * 5_000 + '"')


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)


def prompts():
    return {"prompt_real": torch.rand(2, 3), "prompt_fake": torch.rand(2, 3)}


def header(rng):
    """A file whose header says of its tensors what it likes."""
    names = ("prompt_real", "prompt_fake", "linear.weight", "linear.bias", "\n", "x" * 300, "__metadata__")
    entries = {}
    for name in rng.sample(names, rng.randrange(5)):
        shape = [rng.choice(NUMBERS) for _ in range(rng.randrange(4))] if rng.random() < 0.5 else [2, 2]
        offsets = [rng.choice(NUMBERS), rng.choice(NUMBERS)] if rng.random() < 0.5 else [0, 16]
        entry = {"dtype": rng.choice(DTYPES[:4] if rng.random() < 0.6 else DTYPES), "shape": shape}
        entries[name] = entry | {"data_offsets": offsets}
    if rng.random() < 0.5:
        keys = ("calibration", "hyper_parameters", "format")
        entries["__metadata__"] = {key: rng.choice((*TEXTS, *TEXTS, 3, None, [])) for key in keys}
    text = json.dumps(entries)
    if rng.random() < 0.1:
        text = (
            text[:-1] + ', "prompt_real": ' + json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}) + "}"
        )
    if rng.random() < 0.05:
        text = rng.choice(TEXTS)
    length = rng.choice((len(text), len(text), len(text), len(text) + 1, 0, 2**32, 2**63))
    return struct.pack("<Q", length) + text.encode() + bytes(rng.choice((0, 16, 16, 24, 32)))


def make(case, folder):
    rng = random.Random(case)
    if rng.random() < 0.4:
        tensors = prompts() if rng.random() < 0.5 else Net().state_dict()
        data = mutated(save(tensors, {"calibration": '{"threshold": 0.5}', "format": "pt"}), rng)
    else:
        data = header(rng)
    path = folder / "w.safetensors"
    path.write_bytes(data)
    return rng.randrange(4), path


def target(made, folder):
    turn, path = made
    if turn == 0:
        tensors, metadata = read_weights(path)
        for value in tensors.values():
            assert value.numel() * value.element_size() <= path.stat().st_size
            value.double().sum()
        assert isinstance(metadata.get("calibration") or {}, dict)
    elif turn == 1:
        load_weights(Net(), path, strict=False)
    elif turn == 2:
        read_metadata(path)
    else:
        read_prompts(path)


def fuzz(cases, tmp_path):
    return run_hostile(target, cases, seconds=30, megabytes=MEGABYTES, sandbox=tmp_path, make=make)


def test_hundreds_of_hostile_safetensors(tmp_path):
    assert len(fuzz(range(150), tmp_path).reasons) > 5


@pytest.mark.long
def test_many_hostile_safetensors(tmp_path):
    fuzz(range(1000, 11_000), tmp_path)


def written(tmp_path, entries, data=b""):
    text = json.dumps(entries).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("text", ["[" * 20_000, "9" * 5_000])
def test_metadata_that_no_parser_takes_stays_text(tmp_path, text):
    entries = {"__metadata__": {"note": text}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    assert read_metadata(written(tmp_path, entries, bytes(4))) == {"note": text}


@pytest.mark.parametrize("text", ["3", "[1]", '"on"'])
def test_metadata_of_wrong_types_is_refused(tmp_path, text):
    path = written(tmp_path, {"__metadata__": {"calibration": text}})
    with pytest.raises(ValueError, match="`calibration` is no mapping"):
        read_metadata(path)


def test_a_tensor_of_a_kind_that_weights_never_have_is_refused(tmp_path):
    path = written(tmp_path, {"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8))
    with pytest.raises(ValueError, match="no weights have"):
        read_weights(path)


def model_folder(tmp_path):
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (tmp_path / "model" / part).mkdir(parents=True)
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["../../../w.safetensors", "/etc/passwd", "a/b.safetensors", "..", 3, None])
def test_an_index_of_weights_may_not_name_files_elsewhere(tmp_path, name):
    folder = model_folder(tmp_path)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"conv.weight": name}}))
    with pytest.raises(ValueError, match="names a file outside of its folder"):
        find_model(str(folder))
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"conv.weight": "part-1.safetensors"}}))
    assert find_model(str(folder)) == folder


@pytest.mark.parametrize(
    "text", ["[" * 20_000, "[]", "{", '{"num_train_timesteps": 1e9}', '{"num_train_timesteps": "x"}']
)
def test_a_schedule_that_is_none_is_refused(tmp_path, text):
    folder = model_folder(tmp_path)
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"scheduler_config\.json"):
        read_config(folder, "scheduler")
