import pytest
import torch
from timm.models.convnext import ConvNeXt as TimmConvNeXt

from lightning_modules.syncseal.detector import Detector, GlobalResponseNorm

DEPTHS, DIMS = (1, 1, 2, 1), (8, 12, 16, 20)
IN_TIMM = {
    "downsample_layers.0.": "stem.",
    "dwconv": "conv_dw",
    "pwconv1": "mlp.fc1",
    "pwconv2": "mlp.fc2",
    "grn.gamma": "mlp.grn.weight",
    "grn.beta": "mlp.grn.bias",
}


def timm_key(key):
    """The name in timm of an entry of ours."""
    if key.startswith("downsample_layers.") and not key.startswith("downsample_layers.0."):
        stage, rest = key.removeprefix("downsample_layers.").split(".", 1)
        return f"stages.{stage}.downsample.{rest}"
    if key.startswith("stages."):
        stage, block, rest = key.removeprefix("stages.").split(".", 2)
        key = f"stages.{stage}.blocks.{block}.{rest}"
    for ours, theirs in IN_TIMM.items():
        key = key.replace(ours, theirs)
    return key


def stirred(module):
    """A module with weights that no initialisation gives: zeros would hide the norms."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def test_features_are_those_of_timms_convnext_v2():
    detector = stirred(Detector(DEPTHS, DIMS))
    oracle = TimmConvNeXt(depths=DEPTHS, dims=DIMS, use_grn=True, ls_init_value=None, conv_mlp=False, num_classes=0)
    state = {timm_key(key): value for key, value in detector.convnext.state_dict().items()}
    wanted = oracle.state_dict()
    given = {key: value.view(wanted[key].shape) for key, value in state.items()}
    missing = oracle.load_state_dict(given, strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("head.") for key in missing.missing_keys)
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        features = oracle.eval().forward_features(image * 2 - 1)
        torch.testing.assert_close(detector.convnext(image * 2 - 1), features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(detector(image), detector.head.linear(features.mean((2, 3))), rtol=1e-4, atol=1e-5)


def test_an_untrained_response_norm_changes_nothing():
    features = torch.randn(2, 3, 4, 5)
    assert torch.equal(GlobalResponseNorm(5)(features), features)


def test_coordinates_are_computed_in_float32_within_sixteen_bits():
    detector = stirred(Detector(DEPTHS, DIMS))
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, features = detector(image), detector.convnext(image * 2 - 1)
    assert found.dtype == torch.float32
    wanted = detector.head.linear(features.float().mean((2, 3)))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "arguments", [{"depths": (1,)}, {"dims": (8, 8, 8, 0)}, {"outputs": 8}, {"depths": (), "dims": ()}]
)
def test_what_cannot_be_built_is_said(arguments):
    with pytest.raises(ValueError, match="`detector_depths` and `detector_dims` must be as many numbers above 0"):
        Detector(**arguments)
    assert Detector((1, 1), (8, 8), 17)(torch.rand(1, 3, 16, 16)).shape == (1, 17)
