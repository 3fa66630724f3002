"""The goldens themselves: untouched files, small enough to commit, and errors that cannot pass for success."""

import shutil
from pathlib import Path

import pytest

COMMITTED = Path(__file__).resolve().parents[1] / "goldens"


def test_committed_goldens_stay_small():
    assert sum(path.stat().st_size for path in COMMITTED.rglob("*") if path.is_file()) <= 8e6


@pytest.mark.parametrize("method", sorted(path.name for path in COMMITTED.iterdir() if path.is_dir()))
def test_committed_files_are_those_of_their_manifest(method, golden_folder):
    folder_type = type(golden_folder(method))
    folder = folder_type.open(COMMITTED / method)
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    present = {path.relative_to(folder.path).as_posix() for path in files} - {"manifest.json", "README.md"}
    assert present == set(folder.manifest["files"])
    for file in present:
        folder._verify(file)


def test_damaged_absent_and_empty_goldens_are_errors(tmp_path, golden_folder):
    committed = golden_folder("watermark_segmentation")
    folder_type = type(committed)
    with pytest.raises(pytest.UsageError, match="give --goldens a folder that has one folder a method"):
        folder_type.open(tmp_path / "watermark_segmentation")
    damaged = folder_type.open(shutil.copytree(COMMITTED / "watermark_segmentation", tmp_path / "damaged"))
    content = bytearray((damaged.path / "blend.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged.path / "blend.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"blend\.safetensors: SHA-256 is .*, the manifest says"):
        damaged.tensors("blend.safetensors")
    assert [golden.id for golden in damaged.goldens("blend", lambda folder: ["a", "b"])] == ["a", "b"]
    with pytest.raises(pytest.UsageError, match="no golden case of kind 'dilation'"):
        damaged.goldens("dilation", lambda folder: {})
