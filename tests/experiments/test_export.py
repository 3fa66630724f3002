import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments import export as exporter
from experiments.cli import main
from experiments.export import export, find_shipped_weights, largest_difference, load_module, write_checked
from experiments.export_formats import FORMATS
from lightning_modules.exporting import ExportProgram
from lightning_modules.syncseal.published import read_network
from lightning_modules.watermark_segmentation.exporting import export_program
from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule
from lightning_modules.weights import save_weights

CLASS = "lightning_modules.watermark_segmentation.module.WatermarkSegmentationModule"
SMALL = {"encoder": "resnet18", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}

# Run with -I in another folder: nothing of ours can be imported there.
READERS = {
    "torchscript": """
import torch
extra = {"sealmark.json": ""}
model = torch.jit.load(path, _extra_files=extra)
metadata = json.loads(extra["sealmark.json"])
with torch.no_grad():
    answer = model(torch.tensor(image)).numpy()
""",
    "pt2": """
import torch
extra = {"sealmark.json": ""}
model = torch.export.load(path, extra_files=extra).module()
metadata = json.loads(extra["sealmark.json"])
answer = model(torch.tensor(image)).numpy()
""",
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
answer = session.run(["probability"], {"image": image})[0]
assert "torch" not in sys.modules
""",
}
FRAME = """
import json, sys, warnings
import numpy as np
warnings.simplefilter("ignore")
path, size = sys.argv[1], json.loads(sys.argv[2])
image = (np.arange(np.prod(size)).reshape(size) % 251 / 250).astype(np.float32)
{reader}
for name in ("lightning_modules", "experiments", "segmentation_models_pytorch", "timm", "lightning"):
    assert name not in sys.modules, name
json.dump({{"metadata": metadata, "answer": answer.tolist()}}, sys.stdout)
"""


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    built = WatermarkSegmentationModule(**SMALL, threshold=0.37).eval()
    for layer in built.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    return built


def as_cli_checkpoint(module, path, class_path=CLASS, **changes):
    """A checkpoint as LightningCLI's subclass mode makes it."""
    hparams = {"_instantiator": "lightning.pytorch.cli.instantiate_module", "_class_path": class_path}
    hparams |= dict(module.hparams) | {"weights": "gone.ckpt", "encoder_weights": "imagenet"} | changes
    content = {"state_dict": module.state_dict(), "hyper_parameters": hparams, "calibration": {"threshold": 0.37}}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(module, tmp_path_factory):
    return as_cli_checkpoint(module, tmp_path_factory.mktemp("run") / "last.ckpt", threshold=None)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "pt2" else ()) for name in FORMATS]
)
def test_the_file_answers_as_the_module_in_a_process_without_our_code(module, checkpoint, tmp_path, name, capsys):
    output = tmp_path / "folder" / f"marks.{name}"
    export(output, checkpoint, format=name)
    said = capsys.readouterr().out
    assert f"{output}: {name}" in said
    assert "largest difference to the module" in said
    assert [p.name for p in output.parent.iterdir()] == [output.name], "one self-contained file"

    for size in ([1, 3, 70, 45], [2, 3, 33, 64]):
        script = FRAME.format(reader=READERS[name])
        run = subprocess.run(
            [sys.executable, "-I", "-c", script, str(output), json.dumps(size)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        got = json.loads(run.stdout)
        image = (torch.arange(torch.tensor(size).prod()).reshape(size) % 251 / 250).float()
        with torch.no_grad():
            torch.testing.assert_close(torch.tensor(got["answer"]), module.probability(image), atol=1e-4, rtol=0)
    metadata = got["metadata"]
    assert metadata["method"] == "watermark_segmentation"
    assert float(metadata["threshold"]) == 0.37
    assert metadata["license"] == "MIT"
    assert metadata["weights"] == "last.ckpt"
    for key in ("classes", "input", "output", "sealmark_version", "command", "created"):
        assert metadata[key]


def test_a_file_that_answers_differently_is_not_left_behind(module, tmp_path, monkeypatch):
    write, read = FORMATS["torchscript"]
    sabotaged = (write, lambda path: lambda image: read(path)(image) + 2e-4)
    monkeypatch.setitem(FORMATS, "torchscript", sabotaged)
    output = tmp_path / "out" / "marks.ts"
    with pytest.raises(ValueError, match=r"answers differently from the module, by up to 2\.0e-04") as error:
        write_checked(export_program(module), {}, "torchscript", output)
    assert "\n" not in str(error.value)
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize(
    "answer",
    [lambda image: image[:, :1] * float("nan"), lambda image: image, lambda image: 1 / 0],
    ids=["no number", "another shape", "an exception"],
)
def test_answers_that_are_no_numbers_or_of_another_shape_fail(module, tmp_path, monkeypatch, answer):
    monkeypatch.setitem(FORMATS, "torchscript", (FORMATS["torchscript"][0], lambda path: answer))
    with pytest.raises(ValueError, match="torchscript file") as error:
        write_checked(export_program(module), {}, "torchscript", tmp_path / "x.ts")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_exporter_gives_one_line_and_keeps_an_existing_file(module, tmp_path, monkeypatch):
    def fail(program, metadata, path):
        path.write_text("half")
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setitem(FORMATS, "torchscript", (fail, FORMATS["torchscript"][1]))
    output = tmp_path / "marks.ts"
    output.write_text("old")
    with pytest.raises(ValueError, match=r"first line$"):
        write_checked(export_program(module), {}, "torchscript", output)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"marks.ts": "old"}


def test_an_existing_file_is_refused_unless_told_otherwise(checkpoint, tmp_path):
    output = tmp_path / "marks.ts"
    output.write_text("old")
    with pytest.raises(FileExistsError, match=r"marks\.ts exists.*--overwrite"):
        export(output, checkpoint, format="torchscript")
    export(output, checkpoint, format="torchscript", overwrite=True)
    assert output.stat().st_size > 1000
    with pytest.raises(ValueError, match="is a folder"):
        export(tmp_path, checkpoint)


def test_our_weight_files_are_exported_and_found_by_default(module, tmp_path, monkeypatch, capsys):
    metadata = {"hyper_parameters": dict(SMALL), "class_path": CLASS, "calibration": {"threshold": 0.2}}
    save_weights(module, tmp_path / "small.safetensors", metadata)
    loaded = load_module(tmp_path / "small.safetensors")
    assert loaded.threshold == 0.2
    assert not loaded.training
    image = torch.rand(1, 3, 40, 50)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), module(image))
    monkeypatch.setattr(exporter, "SHIPPED_WEIGHTS", tmp_path)
    assert find_shipped_weights() == tmp_path / "small.safetensors"
    export(tmp_path / "marks.ts", format="torchscript")
    assert "using the shipped weights" in capsys.readouterr().err
    monkeypatch.setattr(exporter, "SHIPPED_WEIGHTS", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="--ckpt_path"):
        export(tmp_path / "other.ts")


@pytest.mark.parametrize("class_path", ["os.system", "lightning_modules.weights.load_weights", "torch.nn.Linear"])
def test_only_modules_of_ours_are_built_from_a_checkpoint(module, tmp_path, class_path):
    path = as_cli_checkpoint(module, tmp_path / "evil.ckpt", class_path)
    with pytest.raises(ValueError, match=r"evil\.ckpt") as error:
        load_module(path)
    assert class_path in str(error.value)


def test_a_file_that_does_not_name_its_module_can_be_told(module, tmp_path):
    torch.save(module.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ValueError, match=r"bare\.pth does not say .* --module"):
        load_module(tmp_path / "bare.pth")
    assert load_module(tmp_path / "bare.pth", CLASS, SMALL).hparams["encoder"] == "resnet18"
    with pytest.raises(ValueError, match="--hparams encodre: no such argument"):
        load_module(tmp_path / "bare.pth", CLASS, SMALL | {"encodre": "x"})


def test_the_program_is_a_copy_with_the_activation_inside(module):
    program = export_program(module)
    image = torch.rand(2, 3, 50, 70)
    with torch.no_grad():
        torch.testing.assert_close(program.network(image), module.probability(image))
    next(program.network.parameters()).zero_()
    assert next(module.network.parameters()).abs().sum() > 0
    assert largest_difference(program, program.network) == 0


def test_the_check_takes_no_image_smaller_than_the_network_does():
    sizes = []

    class Picky(torch.nn.Module):
        def forward(self, image):
            sizes.append(min(image.shape[-2:]))
            return image[:, :1]

    largest_difference(ExportProgram(Picky(), min_side=100), lambda image: image[:, :1])
    assert min(sizes) == 100


def test_the_command_ends_with_one_line(tmp_path, capsys):
    assert main(["export", "--output", str(tmp_path / "x.onnx"), "--ckpt_path", str(tmp_path / "gone.ckpt")]) == 2
    error = capsys.readouterr().err
    assert "gone.ckpt" in error
    assert error.count("\n") == 1


PUBLISHED = Path(__file__).parents[1] / "goldens" / "syncseal" / "tiny_checkpoint.pth"


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_published_checkpoint_becomes_the_published_script(tmp_path, capsys):
    """`embed`, `detect` and `unwarp` answer as the checkpoint's network; the script is exported in turn."""
    script = tmp_path / "syncmodel.jit.pt"
    command = ["export", "--output", str(script), "--ckpt_path", str(PUBLISHED), "--format", "torchscript"]
    assert main([*command, "--hparams", '{"export_part": "published"}']) == 0
    assert "largest difference" in capsys.readouterr().out
    network, interface = read_network(PUBLISHED), torch.jit.load(script)
    for size in ((1, 3, 64, 48), (5, 3, 33, 1000), (1, 3, 1000, 33), (5, 3, 64, 48)):
        image = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(2)) / 255
        with torch.no_grad():
            wanted, embedded = network.embed(image), interface.embed(image)
            torch.testing.assert_close(embedded["preds_w"], wanted.pattern, rtol=0, atol=1e-5)
            answer = interface.detect(embedded["imgs_w"])["preds"]
            torch.testing.assert_close(answer, network.detect(embedded["imgs_w"]), rtol=0, atol=1e-5)
            assert interface.unwarp(image, answer[:, 1:], size[2:]).shape == size
    detector = tmp_path / "detector.ts"
    assert main(["export", "--output", str(detector), "--ckpt_path", str(script), "--format", "torchscript"]) == 0
    with torch.no_grad():
        found = torch.jit.load(detector)(image)
    torch.testing.assert_close(found, interface.detect(image)["preds"], rtol=0, atol=1e-5)


def test_arguments_that_a_published_checkpoint_contradicts_are_named(tmp_path, capsys):
    command = ["export", "--output", str(tmp_path / "file.pt"), "--ckpt_path", str(PUBLISHED)]
    assert main([*command, "--hparams", '{"size": 128}']) != 0
    assert "give the model the same" in capsys.readouterr().err
    assert main([*command, "--hparams", '{"dims": [8, 8]}']) != 0
    assert "no such argument of SyncSealModule" in capsys.readouterr().err
