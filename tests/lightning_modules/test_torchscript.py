"""TorchScript files give their tensors and nothing else: torch's own loader is the oracle."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_modules.torchscript import is_torchscript, read_torchscript
from lightning_modules.weights import read_weights

# torch deprecates TorchScript, in which published files still come.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.register_buffer("steps", torch.tensor([1, 2, 3]))
        self.sizes = [1, 2]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.body(image).mean() + self.steps.sum() + self.sizes[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("way", ["script", "trace"])
def test_tensors_are_those_of_the_state_dict(dtype: torch.dtype, way: str, tmp_path: Path) -> None:
    module, file = Small().to(dtype).eval(), tmp_path / "model.pt"
    (
        torch.jit.script(module) if way == "script" else torch.jit.trace(module, torch.rand(1, 3, 8, 8, dtype=dtype))
    ).save(file)
    assert is_torchscript(file)
    wanted = torch.jit.load(file).state_dict()
    tensors, metadata = read_weights(file)
    assert metadata == {}
    assert set(tensors) == set(wanted)
    for key, value in wanted.items():
        assert tensors[key].dtype == value.dtype
        assert torch.equal(tensors[key], value)


def test_other_files_are_not_torchscript(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "plain.pt")
    (tmp_path / "text.pt").write_text("nothing")
    assert not is_torchscript(tmp_path / "plain.pt")
    assert not is_torchscript(tmp_path / "text.pt")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def rewritten(file: Path, content: bytes) -> Path:
    """Copy an archive with another data.pkl."""
    target = file.with_name("other.pt")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("/data.pkl") else old.read(name))
    return target


def test_code_in_the_pickle_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.jit.script(Small()).save(tmp_path / "model.pt")
    stream = io.BytesIO()
    pickle.dump({"a": Bomb()}, stream)
    with pytest.raises(ValueError, match=r"refused: loading it would execute builtins\.print"):
        read_torchscript(rewritten(tmp_path / "model.pt", stream.getvalue()))
    assert "executed" not in capsys.readouterr().out


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    torch.jit.script(Small()).save(tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    with pytest.raises(ValueError, match=r"other\.pt is not a whole TorchScript file"):
        read_torchscript(rewritten(tmp_path / "model.pt", content[: len(content) // 2]))
