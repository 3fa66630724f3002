import copy

import numpy as np
import pytest
import torch

from lightning_modules.functional.color import rgb_to_ycbcr_studio
from lightning_modules.functional.spectrum import half_log_magnitude, mirrored
from lightning_modules.masksim.bank import DetectorBank, Trunk, heads_of_detectors
from lightning_modules.masksim.heads import HeadBank
from lightning_modules.masksim.network import MaskSimNetwork

SIZE = 24


def detector(seed, preprocess="linear3x3", masks=1, size=SIZE):
    """A detector that has seen something: no parameter is where it was initialised."""
    torch.manual_seed(seed)
    network = MaskSimNetwork(size, preprocess, masks, denoiser_depth=3, denoiser_width=4).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 * torch.randn_like(parameter))
        network.norm_vector.running_mean.normal_()
        network.norm_vector.running_var.uniform_(0.5, 2)
    return network


def one_by_one(network, image):
    with torch.no_grad():
        return network(rgb_to_ycbcr_studio(image, truncate=True))


def windows(count=3, size=SIZE, seed=0):
    return torch.rand(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("preprocess", ["dncnn", "linear3x3", "cross_diff", "identity"])
@pytest.mark.parametrize("masks", [1, 2])
@pytest.mark.parametrize("size", [24, 25])
def test_half_plane_scores_are_those_of_the_whole_plane(preprocess, masks, size):
    network, image = detector(0, preprocess, masks, size), windows(size=size)
    bank = DetectorBank.from_detectors([("a", network)])
    torch.testing.assert_close(bank(image)[:, 0], one_by_one(network, image), rtol=0, atol=1e-10)
    expected = network.similarity_map(rgb_to_ycbcr_studio(image, truncate=True))
    torch.testing.assert_close(bank.similarity_map(image, 0), expected, rtol=0, atol=1e-12)
    assert bank.window_hw == tuple(expected.shape[-2:])


def test_equal_trunks_are_one_and_others_stay():
    networks = [detector(seed) for seed in range(5)]
    for first, second in ((1, 0), (4, 2)):
        networks[first].preproc.load_state_dict(networks[second].preproc.state_dict())
    image = windows()
    named = [(f"g{place}", network) for place, network in enumerate(networks)]
    bank = DetectorBank.from_detectors(named)
    assert bank.trunk_of == [0, 0, 1, 2, 1]
    assert len(bank.trunks) == 3
    assert bank.generators == ("g0", "g1", "g2", "g3", "g4")
    expected = torch.stack([one_by_one(network, image) for network in networks], dim=1)
    torch.testing.assert_close(bank(image), expected, rtol=0, atol=1e-10)
    for head, network in enumerate(networks):
        plain = network.similarity_map(rgb_to_ycbcr_studio(image, truncate=True))
        torch.testing.assert_close(bank.similarity_map(image, head), plain, rtol=0, atol=1e-12)


def test_a_shared_denoiser_is_folded_once_and_scores_stay():
    networks = [detector(seed, "dncnn") for seed in range(7)]
    for network in networks[1:]:
        network.preproc.load_state_dict(networks[0].preproc.state_dict())
    bank = DetectorBank.from_detectors([(str(place), network) for place, network in enumerate(networks)])
    calls = []
    bank.trunks[0].preproc.register_forward_hook(lambda *_: calls.append(1))
    image = windows()
    expected = torch.stack([one_by_one(network, image) for network in networks], dim=1)
    torch.testing.assert_close(bank(image), expected, rtol=0, atol=1e-9)
    assert len(calls) == len(bank.trunks) == 1
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in bank.modules())


def test_single_precision_is_near():
    network = detector(3)
    bank = DetectorBank.from_detectors([("a", network.float())])
    image = windows()
    torch.testing.assert_close(
        bank(image.float())[:, 0].double(), one_by_one(network.double(), image), rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("masks", [1, 3])
def test_train_mode_normalises_and_follows_as_batch_norm_does(masks):
    network = detector(0, "identity", masks)
    heads = heads_of_detectors([network, detector(1, "identity", masks)]).train()
    network.train()
    image = windows(5)
    spectrum = half_log_magnitude(image)
    chosen = torch.tensor([[1, 0], [1, 1], [0, 1], [1, 1], [1, 0]], dtype=torch.bool)
    got = heads([spectrum], [0, 0], chosen)[:, 0]
    expected = network.similarity(network.log_spectrum(image[chosen[:, 0]]))
    torch.testing.assert_close(got[chosen[:, 0]], expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(heads.running_mean[0], network.norm_vector.running_mean)
    torch.testing.assert_close(heads.running_var[0], network.norm_vector.running_var)
    assert heads.num_batches_tracked.tolist() == [masks, masks] == [int(network.norm_vector.num_batches_tracked)] * 2
    expected.square().sum().backward()
    got[chosen[:, 0]].square().sum().backward()
    for mask in range(masks):
        for ours, theirs in (
            (heads.mask_activations.grad[0, mask], network.mask_pre_activ_list[mask].grad),
            (heads.reference_patterns.grad[0, mask], network.ref_pattern_list[mask].grad),
        ):
            torch.testing.assert_close(
                ours, torch.zeros_like(ours) if theirs is None else theirs, rtol=1e-8, atol=1e-12
            )
    torch.testing.assert_close(heads.mix.grad[0], network.in_conv_fft[0].weight.grad[:, :, 0, 0], rtol=1e-8, atol=1e-11)
    assert float(heads.mask_activations.grad[1].abs().max()) == 0.0


def test_a_head_without_samples_does_not_follow():
    heads = HeadBank(2, (8, 8)).train()
    spectrum = half_log_magnitude(torch.rand(3, 3, 8, 8))
    chosen = torch.tensor([[True, False]] * 3)
    similarity = heads([spectrum], [0, 0], chosen)
    assert torch.isfinite(similarity).all()
    assert heads.num_batches_tracked.tolist() == [1, 0]
    assert float(heads.running_mean[1].abs().max()) == 0.0
    assert torch.equal(heads.running_var[1], torch.ones(3))


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_tied_masks_are_symmetric_with_half_the_parameters(size):
    torch.manual_seed(0)
    tied, free = HeadBank(2, size, tied=True), HeadBank(2, size)
    tied.mask_activations.data.normal_()
    tied.reference_patterns.data.normal_()
    assert tied.mask_activations.shape[-1] == size[1] // 2 + 1 < free.mask_activations.shape[-1]
    references = tied.references()
    torch.testing.assert_close(mirrored(references), references)
    if size[0] % 2 and size[1] % 2:  # on even sides the mean filter ends before the mirror of the first row
        torch.testing.assert_close(mirrored(tied.masks()), tied.masks())
    network = MaskSimNetwork(9, "identity")
    with pytest.raises(ValueError, match=r"set model\.tied to false"):
        tied.load_detector(0, network)


def test_tied_heads_go_out_as_published_ones():
    torch.manual_seed(0)
    heads = HeadBank(1, (SIZE, SIZE), tied=True).double().eval()
    heads.mask_activations.data.normal_()
    heads.reference_patterns.data.normal_()
    network = MaskSimNetwork(SIZE, "identity").double().eval()
    heads.write_detector(0, network)
    image = windows()
    got = heads.logit(heads([half_log_magnitude(rgb_to_ycbcr_studio(image, truncate=True))], [0]))[:, 0]
    torch.testing.assert_close(got, one_by_one(network, image), rtol=0, atol=1e-11)


def test_similarity_is_a_cosine_by_numpy():
    network, image = detector(0), windows(1)
    bank = DetectorBank.from_detectors([("a", network)])
    spectrum = network.log_spectrum(rgb_to_ycbcr_studio(image, truncate=True))[0].detach().numpy()
    heads = bank.heads
    mixed = np.einsum("ck,khw->chw", heads.mix[0].numpy(), spectrum)
    total = 0.0
    for channel in range(3):
        masked = (mixed * bank.first_masks[0].numpy())[channel]
        scale = float(heads.norm_weight[0, channel]) / np.sqrt(float(heads.running_var[0, channel]) + 1e-5)
        vector = (masked - float(heads.running_mean[0, channel])) * scale + float(heads.norm_bias[0, channel])
        pattern = network.ref_pattern_list[0][channel].detach().numpy()
        pattern = pattern - pattern.mean()
        total += float((vector * pattern).sum() / np.linalg.norm(vector) / np.linalg.norm(pattern)) / 3
    assert float(bank.similarity(bank.log_spectrum(image))) == pytest.approx(total, abs=1e-12)


def test_half_denoiser_and_float16_spectra_score_alike():
    network = detector(0, "dncnn").float()
    bank = DetectorBank.from_detectors([("a", network)])
    image = windows().float()
    spectra = bank.log_spectrum(image)
    assert spectra.shape == (1, 3, 3, SIZE - 6, SIZE // 2 - 2)
    torch.testing.assert_close(bank.score(spectra.half()), bank.score(spectra), rtol=0, atol=5e-3)
    halved = DetectorBank.from_detectors([("a", network)], half_denoiser=True)
    torch.testing.assert_close(halved(image), bank(image), rtol=0, atol=0.1)


def test_wrong_windows_and_detectors_are_one_line():
    bank = DetectorBank.from_detectors([("a", detector(0))])
    with pytest.raises(ValueError, match="must be 24 × 24 pixels, got 25 × 24"):
        bank(torch.rand(1, 3, 25, 24))
    with pytest.raises(ValueError, match="different masks"):
        heads_of_detectors([detector(0), detector(0, masks=2)])
    with pytest.raises(ValueError, match="must be one of dncnn, linear3x3, cross_diff, identity, got 'DnCN'"):
        Trunk(24, "DnCN")
    with pytest.raises(ValueError, match="leaves nothing behind 17 convolutions: take 36"):
        Trunk(34, "dncnn")


def test_the_bank_keeps_no_tie_to_what_it_was_made_of():
    network, image = detector(0), windows()
    bank = DetectorBank.from_detectors([("a", network)])
    before = bank(image)
    kept = copy.deepcopy(network.state_dict())
    for parameter in network.parameters():
        parameter.data.zero_()
    assert torch.equal(bank(image), before)
    network.load_state_dict(kept)
