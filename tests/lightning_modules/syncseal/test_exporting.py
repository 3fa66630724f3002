import json

import pytest
import torch

from experiments.export import write_checked
from experiments.export_formats import FORMATS
from lightning_modules.syncseal import exporting
from lightning_modules.syncseal.exporting import export_program, write_script
from lightning_modules.syncseal.network import SyncNetwork
from lightning_modules.syncseal.published import METADATA_KEY

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
SLOW = [pytest.param(format, marks=pytest.mark.slow) for format in ("onnx", "pt2")]


def tiny(**changes):
    torch.manual_seed(0)
    options = {
        "embedder_channels": (8, 16), "embedder_blocks": 1, "detector_depths": (1, 1), "detector_dims": (8, 12),
        "size": 32,
    }  # fmt: skip
    network = SyncNetwork(**options | changes).eval()
    torch.nn.init.normal_(network.embedder.unet.outc.weight, std=2.0)
    return network


@pytest.mark.parametrize("format", ["torchscript", *SLOW])
@pytest.mark.parametrize("variant", ["gelu_group", "relu_batch"])
def test_files_of_every_format_answer_as_the_network(format, variant, tmp_path):
    network = tiny(embedder=variant)
    answers = {}
    for part in ("embedder", "detector"):
        program = export_program(network, part)
        path = tmp_path / f"{part}.{format}"
        write_checked(program, program.metadata, format, path)
        answers[part] = FORMATS[format][1](path)
    for size in ((1, 3, 64, 48), (5, 3, 33, 1000), (2, 3, 32, 32)):
        image = torch.rand(size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            wanted = network.embed(image)
            torch.testing.assert_close(answers["detector"](image), network.detect(image), rtol=0, atol=1e-5)
            marked = answers["embedder"](image)
        unrounded = (image + 0.2 * wanted.pattern).clamp(0, 1)
        torch.testing.assert_close(marked, unrounded, rtol=0, atol=1e-5)
        difference = ((marked * 255).round() / 255 - wanted.marked).abs() * 255
        assert difference.max() < 1.01
        assert (difference > 0.5).float().mean() < 1e-3


def test_the_program_is_a_copy_in_eval_mode_that_says_what_it_is():
    training = tiny(scaling_w=0.3).to(memory_format=torch.channels_last).train()
    program = export_program(training, "embedder")
    assert not program.network.training
    assert not any(parameter.requires_grad for parameter in program.network.parameters())
    assert training.training
    assert training.embedder.unet.outc.weight.requires_grad
    told = json.loads(json.dumps(program.metadata))
    assert (told["method"], told["part"], told["scaling_w"], told["img_size"]) == ("syncseal", "embedder", 0.3, 32)
    assert (program.output_name, export_program(training).output_name) == ("marked", "corners")
    assert "(B, 9)" in export_program(training).metadata["output"]


def test_a_script_is_written_whole_with_its_facts(tmp_path):
    path = tmp_path / "made" / "syncmodel.jit.pt"
    assert write_script(tiny(), path, {"weights": "ours.ckpt"}) < 1e-5
    extra = {METADATA_KEY: ""}
    torch.jit.load(path, _extra_files=extra)
    told = json.loads(extra[METADATA_KEY])
    assert (told["scaling_w"], told["weights"], told["part"]) == (0.2, "ours.ckpt", "published")
    assert "unwarp(imgs, preds_pts, (H, W))" in told["output"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_script_that_answers_differently_is_not_left_behind(tmp_path, monkeypatch):
    other = tiny(scaling_w=0.9)
    monkeypatch.setitem(exporting._PROGRAMS, "published", (lambda _network: exporting.scripted(other), "all"))
    with pytest.raises(ValueError, match=r"the TorchScript file answers differently, by up to .*not written"):
        write_script(tiny(), tmp_path / "s.pt")
    assert not list(tmp_path.iterdir())


def test_the_published_interface_is_a_program_too(tmp_path):
    program = export_program(tiny(), "published")
    FORMATS["torchscript"][0](program, program.metadata, tmp_path / "s.pt")
    script, image = FORMATS["torchscript"][1](tmp_path / "s.pt"), torch.rand(2, 3, 40, 50)
    embedded, detected, rest = script(image)
    assert torch.equal(embedded["imgs_w"], program.network(image)[0]["imgs_w"])
    assert script.unwarp(image, detected["preds_pts"], (40, 50)).shape == image.shape
    assert rest["imgs_unwarped"].shape == (2, 3, 256, 256)


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="`export_part` must be embedder, detector or published, got 'both'"):
        export_program(tiny(), "both")
