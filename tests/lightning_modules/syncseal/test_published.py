import pickle
import zipfile

import pytest
import torch
import yaml

from lightning_modules.syncseal.discriminator import PatchDiscriminator
from lightning_modules.syncseal.exporting import write_script
from lightning_modules.syncseal.network import SyncNetwork
from lightning_modules.syncseal.published import (
    is_published,
    key_map_into,
    load_published,
    network_arguments,
    read_network,
    read_published,
    recognise,
    write_published,
)
from lightning_modules.weights import load_weights, save_weights

TINY = {
    "embedder_channels": (8, 16, 24), "embedder_blocks": 2, "detector_depths": (1, 2), "detector_dims": (8, 12),
    "size": 32,
}  # fmt: skip


def tiny(**changes):
    torch.manual_seed(0)
    return SyncNetwork(**TINY | changes).eval()


def assert_same_weights(one, other):
    assert list(one.state_dict()) == list(other.state_dict())
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("changes", [{}, {"embedder": "relu_batch"}, {"attenuation": "jnd_3_1", "scaling_w": 0.35}])
def test_a_written_checkpoint_reads_back(changes, tmp_path):
    network, discriminator = tiny(**changes), PatchDiscriminator()
    path = tmp_path / "run" / "checkpoint.pth"
    write_published(network, path, discriminator, epoch=7, arguments={"lambda_d": 0.1, "scaling_w": 9.0})
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "attenuation.yaml", "checkpoint.pth", "embedder.yaml", "extractor.yaml",
    ]  # fmt: skip
    for file in path.parent.glob("*.yaml"):
        file.unlink()
    assert is_published(path)
    published = read_published(path)
    assert (published.epoch, published.arguments["lambda_d"]) == (7, 0.1)
    assert read_network(path).arguments == network.arguments
    assert not read_network(path).training
    assert_same_weights(read_network(path), network)
    partner, again = PatchDiscriminator(), tiny(**changes | {"scaling_w": 0.1})
    load_published(again, published, partner)
    assert_same_weights(partner, discriminator)
    assert_same_weights(again, network)
    assert again.scaling_w == 0.1, "the strength is the model's own"


def test_changes_are_taken(tmp_path):
    write_published(tiny(), tmp_path / "c.pth")
    assert (
        read_network(tmp_path / "c.pth", scaling_w=0.5, jnd_border="reflect").arguments
        == tiny(scaling_w=0.5, jnd_border="reflect").arguments
    )


def test_the_files_beside_it_describe_the_networks(tmp_path):
    write_published(tiny(embedder="relu_batch"), tmp_path / "c.pth")
    told = read_published(tmp_path / "c.pth").arguments
    written = {
        kind: yaml.safe_load((tmp_path / told[f"{kind}_config"]).read_text())
        for kind in ("embedder", "extractor", "attenuation")
    }
    assert written["embedder"][told["embedder_model"]] == {
        "in_channels": 1, "out_channels": 1, "z_channels": 8, "num_blocks": 2, "activation": "relu",
        "normalization": "batch", "z_channels_mults": [1, 2, 3], "last_tanh": True,
    }  # fmt: skip
    assert "yuv" in told["embedder_model"]
    assert written["extractor"][told["extractor_model"]]["encoder"] == {"depths": [1, 2], "dims": [8, 12]}
    assert written["attenuation"][told["attenuation"]] == {"in_channels": 1, "out_channels": 1}


def test_parallel_trainings_and_missing_arguments_are_read(tmp_path):
    network = tiny()
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"model": state, "args": "img_size_proc: 32\nattenuation: jnd_1_1\n"}, tmp_path / "c.pth")
    published = read_published(tmp_path / "c.pth")
    assert_same_weights(read_network(tmp_path / "c.pth"), network)
    assert network_arguments(published)["scaling_w"] == 0.2


def test_the_architecture_is_in_the_keys():
    for changes in ({}, {"embedder": "relu_batch"}, {"attenuation": "none"}, {"detector_outputs": 17}):
        network = tiny(**changes)
        known = recognise(network.state_dict())
        assert known == {name: network.arguments[name] for name in known}
        assert set(network.arguments) - set(known) == {"jnd_border", "scaling_w", "scaling_i", "size"}


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_script_is_read_as_tensors(tmp_path, monkeypatch):
    network = tiny(embedder="relu_batch", scaling_w=0.4)
    path = tmp_path / "syncmodel.jit.pt"
    write_script(network, path)
    monkeypatch.setattr(torch.jit, "load", lambda *_: pytest.fail("the script was loaded as a program"))
    assert is_published(path)
    assert read_network(path).arguments == network.arguments
    assert_same_weights(read_network(path), network)
    # A file of others has no facts of ours: the published strength and size are taken.
    foreign = tmp_path / "foreign.jit.pt"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(foreign, "w") as copied:
        for name in archive.namelist():
            if "/extra/" not in name:
                copied.writestr(name, archive.read(name))
    told = network_arguments(read_published(foreign))
    assert (told["scaling_w"], told["scaling_i"], told["size"]) == (0.2, 1.0, 256)
    again = tiny(embedder="relu_batch")
    load_weights(again, foreign, key_map=key_map_into(again))
    assert_same_weights(again, network)
    module = torch.nn.Module()
    module.network = tiny(embedder="relu_batch", scaling_w=0.4)
    torch.nn.init.zeros_(module.network.embedder.unet.outc.weight)
    load_weights(module, foreign, key_map=key_map_into(module))
    assert_same_weights(module.network, network)


class Boom:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    path = tmp_path / "c.pth"
    torch.save({"model": tiny().state_dict(), "args": "", "optimizer": Boom()}, path)
    assert not is_published(path)
    with pytest.raises(ValueError, match=r"is refused: loading it would execute .*print"):
        read_network(path)
    path.write_bytes(pickle.dumps(Boom(), protocol=2))
    with pytest.raises(ValueError, match="is refused"):
        read_network(path)
    tagged = "scaling_w: !!python/object/apply:builtins.print [executed]"
    torch.save({"model": tiny().state_dict(), "args": tagged}, path)
    with pytest.raises(ValueError, match="its `args` are no plain YAML"):
        read_network(path)
    assert "executed" not in capsys.readouterr().out


def test_other_files_are_said_to_be_other(tmp_path):
    network, path = tiny(), tmp_path / "c.pth"
    torch.save(network.state_dict(), path)
    assert not is_published(path)
    with pytest.raises(ValueError, match="is no published SyncSeal checkpoint: it has no `model`"):
        read_network(path)
    torch.save({"model": network.state_dict(), "args": None}, path)
    with pytest.raises(ValueError, match="its `args` are no YAML mapping"):
        read_network(path)
    torch.save({"model": {"conv.weight": torch.rand(2)}, "args": "a: 1"}, path)
    assert not is_published(path)
    with pytest.raises(ValueError, match=r"is no published SyncSeal file: it has no embedder\.unet\.\*"):
        read_network(path)
    torch.save({"model": network.state_dict(), "args": "scaling_w: high"}, path)
    with pytest.raises(ValueError, match="is no whole published SyncSeal file: could not convert string to float"):
        read_network(path)
    state = network.state_dict()
    del state["embedder.unet.outc.bias"]
    torch.save({"model": state, "args": "img_size: 32"}, path)
    with pytest.raises(ValueError, match=r"does not fit: .*outc\.bias"):
        read_network(path)
    path.write_bytes(path.read_bytes()[:1000])
    assert not is_published(path)
    with pytest.raises(ValueError, match="is not a whole"):
        read_network(path)
    with pytest.raises(FileNotFoundError, match="no weight file at"):
        read_network(tmp_path / "absent.pth")
    save_weights(network, tmp_path / "ours.safetensors", {})
    assert not is_published(tmp_path / "ours.safetensors")
    assert not is_published(tmp_path / "absent.pth")


def test_another_architecture_is_named(tmp_path):
    write_published(tiny(), tmp_path / "c.pth")
    published = read_published(tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"c\.pth was made with detector_dims \(8, 12\), size 32: give the model"):
        load_published(tiny(detector_dims=(8, 16), size=64), published)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detector_outputs": 17}, "got detector_outputs 17"),
        ({"jnd_border": "reflect"}, "and jnd_border reflect"),
        ({"attenuation": "none"}, "attenuation none"),
        ({"embedder_channels": (16, 24)}, r"has multiples of 16 channels, got \(16, 24\)"),
    ],
)
def test_what_the_layout_cannot_hold_is_not_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_published(tiny(**changes), tmp_path / "c.pth")
    assert not list(tmp_path.iterdir())
