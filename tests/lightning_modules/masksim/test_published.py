import re

import pytest
import torch

from lightning_modules.functional.color import rgb_to_ycbcr_studio
from lightning_modules.masksim.denoiser import DnCNN
from lightning_modules.masksim.module import MaskSimModule
from lightning_modules.masksim.network import MaskSimNetwork
from lightning_modules.masksim.published import find_detectors, load_denoiser, read_bank, read_detector, write_detector

SMALL = {"img_size": 24, "denoiser_depth": 3, "denoiser_width": 4}


def write(folder, name, seed=0, preprocess="dncnn", denoiser=None, **changes):
    torch.manual_seed(seed)
    network = MaskSimNetwork(preprocess=preprocess, **SMALL | changes)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    if denoiser is not None:
        network.preproc.load_state_dict(denoiser)
    path = folder / f"{name}-epoch=07-valid_auroc=0.99-valid_loss=0.123-low_loss.ckpt"
    write_detector(network, path)
    return network.eval()


def test_a_folder_becomes_a_bank_of_the_names_in_it(tmp_path):
    networks = {name: write(tmp_path, name, seed) for seed, name in enumerate(("sd1", "sdxl", "firefly"))}
    bank = read_bank(str(tmp_path))
    assert bank.generators == ("firefly", "sd1", "sdxl")
    image = torch.rand(2, 3, 24, 24)
    for place, name in enumerate(bank.generators):
        expected = networks[name](rgb_to_ycbcr_studio(image, truncate=True))
        torch.testing.assert_close(bank(image)[:, place], expected, rtol=0, atol=5e-4)
    files = find_detectors(str(tmp_path))
    assert list(read_bank([str(files["sdxl"]), str(files["sd1"])]).generators) == ["sdxl", "sd1"]


@pytest.mark.parametrize("shared", [False, True])
def test_the_module_takes_a_folder(tmp_path, shared):
    denoiser = DnCNN(3, 3, 4).state_dict() if shared else None
    networks = [write(tmp_path, name, seed, denoiser=denoiser) for seed, name in enumerate(("a", "b"))]
    arguments = SMALL | {"generators": ["b", "a"], "weights": str(tmp_path)}
    if not shared:
        with pytest.raises(ValueError, match=r"have different denoisers: set model\.shared_trunk to false"):
            MaskSimModule(**arguments)
    module = MaskSimModule(**arguments, shared_trunk=shared).eval()
    assert len(module.scorer().trunks) == (1 if shared else 2)
    image = torch.rand(2, 3, 24, 24)
    expected = torch.stack([network(rgb_to_ycbcr_studio(image, truncate=True)) for network in networks[::-1]], dim=1)
    torch.testing.assert_close(module(image), expected, rtol=0, atol=5e-4)
    torch.testing.assert_close(module.scorer()(image), expected, rtol=0, atol=5e-4)
    for name, network in zip("ab", networks, strict=True):
        state = module.detector(name).state_dict()
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def test_a_single_file_needs_no_name(tmp_path):
    write(tmp_path, "whatever")
    file = next(tmp_path.iterdir())
    module = MaskSimModule(["mine"], **SMALL, weights=str(file))
    assert torch.equal(module.heads.offset[0], read_detector(file).clf_b)


def test_files_that_do_not_fit_are_one_line(tmp_path):
    write(tmp_path, "sd1")
    file = next(tmp_path.iterdir())
    cases = [
        ({"generators": ["sd1", "sd2"]}, "no published file of sd2: there are those of sd1"),
        ({"generators": ["sd1"], "img_size": 30}, "was made with img_size 24: give the model the same"),
        ({"generators": ["sd1"], "preprocess": "identity"}, "was made with preprocess dncnn"),
        ({"generators": ["sd1"], "tied": True}, "set model.tied to false"),
    ]
    for changed, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            MaskSimModule(**{**SMALL, "weights": str(tmp_path), **changed})
        assert "\n" not in str(caught.value)
    content = torch.load(file, weights_only=True)
    del content["state_dict"]["clf_b"]
    torch.save(content, tmp_path / "sd2.ckpt")
    with pytest.raises(ValueError, match=r"sd2\.ckpt is no whole published MaskSim detector: .*clf_b") as caught:
        read_detector(tmp_path / "sd2.ckpt")
    assert "\n" not in str(caught.value)
    torch.save({"a": torch.zeros(1)}, tmp_path / "sd3.ckpt")
    with pytest.raises(ValueError, match="is no published MaskSim detector"):
        read_detector(tmp_path / "sd3.ckpt")
    (tmp_path / "sd1-epoch=09.ckpt").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="are both of generator 'sd1': keep one"):
        find_detectors(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.ckpt file in"):
        find_detectors(str(tmp_path / "empty"))


def test_denoisers_of_every_layout_load(tmp_path):
    torch.manual_seed(0)
    source = DnCNN(3, 4, 5)
    state = source.model.state_dict()
    layouts = {
        "plain.th": {"network": state, "global_step": 39},
        "bare.pt": state,
        "ours.ckpt": {"state_dict": {f"denoiser.model.{key}": value for key, value in state.items()}},
        "detector.ckpt": {"state_dict": {f"preproc.model.{key}": value for key, value in state.items()}},
        "module.ckpt": {"state_dict": {f"trunks.0.preproc.model.{key}": value for key, value in state.items()}},
    }
    for name, content in layouts.items():
        torch.save(content, tmp_path / name)
        loaded = DnCNN(3, 4, 5)
        load_denoiser(loaded, tmp_path / name)
        assert all(torch.equal(value, state[key]) for key, value in loaded.model.state_dict().items())
    with pytest.raises(ValueError, match=r"depth 4 and width 5: set denoiser_depth and _width so"):
        load_denoiser(DnCNN(3, 4, 6), tmp_path / "plain.th")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no denoiser"):
        load_denoiser(DnCNN(3, 4, 5), tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match="no weight file at"):
        load_denoiser(DnCNN(3, 4, 5), tmp_path / "absent.th")
    (tmp_path / "text.th").write_text("no weights")
    with pytest.raises(ValueError, match="is not a whole weight file"):
        load_denoiser(DnCNN(3, 4, 5), tmp_path / "text.th")
