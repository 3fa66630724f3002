import io

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

from lightning_modules.functional.detection_calibration import Calibration, CalibrationLayer, fit_platt

HEADS = ("sd1", "sd2", "sdxl")


def dependent(rng, n, heads=3, ties=False, scale=1.0):
    """Logits of heads that agree and disagree, with unlike scales."""
    common = rng.normal(size=(n, 1))
    scores = (common * np.linspace(1.5, -0.5, heads) + rng.gumbel(size=(n, heads))) * np.linspace(1, 5, heads) * scale
    return (np.round(scores) if ties else scores).astype(np.float32)


def calibration(n=60, seed=0, **options):
    return Calibration.fit(dependent(np.random.default_rng(seed), n, **options), HEADS)


def brute_any(real, new):
    """Full conformal: put the new picture among the others, rank all in each head, compare best ranks, then logits."""
    together = np.vstack([real, new])
    ranks = (together[None] >= together[:, None]).sum(axis=1)
    places = [(rank, -largest) for rank, largest in zip(ranks.min(axis=1), together.max(axis=1), strict=True)]
    return sum(place <= places[-1] for place in places) / len(together)


@pytest.mark.parametrize("ties", [False, True])
def test_p_values_equal_their_definition(ties):
    rng = np.random.default_rng(1)
    real, new = dependent(rng, 50, ties=ties), dependent(rng, 400, ties=ties, scale=1.3)
    new[:5] = real[:5]
    fitted = Calibration.fit(real, HEADS)
    wanted = ((real[None] >= new[:, None].astype(np.float32)).sum(axis=1) + 1) / 51
    np.testing.assert_array_equal(fitted.p_values(new), wanted)
    np.testing.assert_array_equal(fitted.any_p_value(new), [brute_any(real, row[None]) for row in new])
    assert fitted.any_p_value(new.reshape(2, 200, 3)).shape == (2, 200)


def test_blocks_of_pictures_do_not_change_the_answer(monkeypatch):
    new = dependent(np.random.default_rng(2), 30)
    whole = calibration().any_p_value(new)
    monkeypatch.setattr("lightning_modules.functional.detection_calibration._BLOCK_CELLS", 400)
    np.testing.assert_array_equal(calibration().any_p_value(new), whole)


def test_any_of_one_head_is_that_head():
    rng = np.random.default_rng(3)
    fitted = Calibration.fit(dependent(rng, 30, 1), ["sd1"])
    new = dependent(rng, 50, 1)
    np.testing.assert_array_equal(fitted.any_p_value(new), fitted.p_values(new)[:, 0])


@pytest.mark.parametrize("ties", [False, True])
def test_nominal_rates_are_kept_on_new_real_pictures(ties):
    """Done-line 5: 400 calibrations of 99 pictures, 20 new ones each; rates within their binomial intervals."""
    rng = np.random.default_rng(4)
    trials, new = 400, 20
    rates = np.zeros((3, 4))
    for _ in range(trials):
        fitted = Calibration.fit(dependent(rng, 99, ties=ties), HEADS)
        logits = dependent(rng, new, ties=ties)
        p = np.column_stack([fitted.p_values(logits), fitted.any_p_value(logits)])
        rates += np.stack([(p <= nominal).mean(axis=0) for nominal in (0.01, 0.05, 0.1)]) / trials
    for found, nominal in zip(rates, (0.01, 0.05, 0.1), strict=True):
        # Pictures that share a calibration depend on each other: the rate of one calibration has a Beta law.
        spread = scipy.stats.beta(round(nominal * 100), 100 - round(nominal * 100)).var()
        error = 4 * np.sqrt((nominal * (1 - nominal) / new + spread) / trials)
        assert (found <= nominal + error).all()
        if not ties:
            assert (found >= nominal - error).all()


def test_a_rule_that_ignores_the_dependence_fails_the_same_test():
    rng = np.random.default_rng(4)
    fitted = Calibration.fit(dependent(rng, 999), HEADS)
    assert (fitted.p_values(dependent(rng, 4000)).min(axis=1) <= 0.05).mean() > 0.1


def test_thresholds_agree_with_p_values():
    for n in (19, 99, 100, 250):
        fitted = calibration(n)
        new = dependent(np.random.default_rng(5), 500)
        for nominal in (0.01, 0.05, 0.1):
            for head in range(3):
                point = fitted.operating_point(head, nominal)
                np.testing.assert_array_equal(new[:, head] > point.threshold, fitted.p_values(new)[:, head] <= nominal)
                assert point.measured <= nominal
                assert point.low <= point.measured <= point.high
    assert calibration(98).operating_point(0, 0.01).threshold == np.inf
    assert calibration(99).operating_point(0, 0.01).threshold < np.inf


def test_the_order_of_calibration_pictures_does_not_matter():
    rng = np.random.default_rng(6)
    real, generated = dependent(rng, 40), dependent(rng, 20) + 3
    labels = np.array(["sd1", "sdxl"] * 10)
    ours = Calibration.fit(real, HEADS, generated, labels).state()
    turn, other = rng.permutation(40), rng.permutation(20)
    theirs = Calibration.fit(real[turn], HEADS, generated[other], labels[other]).state()
    assert torch.equal(ours["scores"], theirs["scores"])
    np.testing.assert_allclose(ours["scale"], theirs["scale"], rtol=1e-9)
    assert ours["fitted"] == [True, False, True]
    assert ours["scale"][1] == 1
    assert ours["offset"][1] == 0


def test_left_out_p_values_are_those_of_a_calibration_without_the_picture():
    real = dependent(np.random.default_rng(7), 25)
    fitted = Calibration.fit(real, HEADS)
    found = {tuple(row): p for row, p in zip(fitted.scores, fitted.left_out_p_values(), strict=True)}
    for position, row in enumerate(real):
        others = Calibration.fit(np.delete(real, position, axis=0), HEADS)
        wanted = [*others.p_values(row), float(others.any_p_value(row))]
        np.testing.assert_allclose(found[tuple(row.astype(float))], wanted, rtol=0, atol=1e-12)


def platt_loss(parameters, real, generated):
    low, high = 1 / (len(real) + 2), (len(generated) + 1) / (len(generated) + 2)

    def one(scores, target):
        margin = parameters[0] * scores + parameters[1]
        return (np.logaddexp(0, margin) - target * margin).mean()

    return (one(real, low) + one(generated, high)) / 2


@pytest.mark.parametrize("gap", [0.0, 1.0, 30.0])
def test_the_temperature_minimises_the_loss(gap):
    rng = np.random.default_rng(8)
    real, generated = rng.normal(-4, 3, 60), rng.normal(-4 + gap, 3, 25)
    found = fit_platt(real, generated)
    wanted = scipy.optimize.minimize(platt_loss, (0.1, 0.0), (real, generated), method="BFGS", options={"gtol": 1e-9})
    assert np.isfinite(found).all()
    assert platt_loss(found, real, generated) <= wanted.fun + 1e-12
    np.testing.assert_allclose(found, wanted.x, rtol=1e-4, atol=1e-5)


def test_probabilities_are_met_on_new_pictures():
    rng = np.random.default_rng(9)

    def logits(n, shift):  # an overconfident detector: true log-odds are a quarter of its logits plus 0.5
        return 4 * (rng.normal(shift, np.sqrt(2), (n, 1)) - 0.5)

    fitted = Calibration.fit(logits(4000, -1), ["sd1"], logits(4000, 1), ["sd1"] * 4000)
    assert fitted.temperature[0] == pytest.approx(4, rel=0.1)
    assert fitted.offset[0] == pytest.approx(0.5, abs=0.1)
    np.testing.assert_allclose(fitted.probability([[0.0]]), 1 / (1 + np.exp(-fitted.offset[None])))


def test_verdicts_and_their_limits():
    fitted = Calibration.fit(np.arange(200.0)[:, None], ["sd1"])
    assert [fitted.verdict(p) for p in (0.01, 0.0101, 0.05, 0.0501)] == ["generated", "unsure", "unsure", "no evidence"]
    for limits in ((0.1, 0.05), (0.0, 0.05), (0.01, 1.0)):
        with pytest.raises(ValueError, match="0 < generated <= unsure < 1"):
            Calibration.fit(np.zeros((3, 1)), ["sd1"], limits=limits)


def test_too_few_pictures_are_cautioned():
    (line, second) = calibration(15).cautions()[:2]
    assert line == ("15 real calibration pictures cannot show p <= 0.01 (the least p is 0.0625): 99 are needed")
    assert "19 are needed" in second
    assert "may be" in calibration(120).cautions()[0]
    assert calibration(3000).cautions() == []


def test_bad_inputs_are_one_line():
    with pytest.raises(ValueError, match="needs real pictures, got none"):
        Calibration.fit(np.zeros((0, 2)), ["a", "b"])
    with pytest.raises(ValueError, match=r"are \(4, 3\), wanted \(N, 2\)"):
        Calibration.fit(np.zeros((4, 3)), ["a", "b"])
    with pytest.raises(ValueError, match="5 generated calibration pictures have 0 labels"):
        Calibration.fit(np.zeros((4, 2)), ["a", "b"], np.zeros((5, 2)))
    with pytest.raises(ValueError, match="2 logits are not a number"):
        calibration().p_values([[np.nan, np.nan, 0]])
    with pytest.raises(ValueError, match="2 logits for a calibration of 3 heads"):
        calibration().p_values([[0.0, 0.0]])


def test_the_state_survives_a_checkpoint():
    rng = np.random.default_rng(10)
    generated = dependent(rng, 9) + 2
    ours = Calibration.fit(dependent(rng, 30), HEADS, generated, ["sd2"] * 9, (0.02, 0.2))
    file = io.BytesIO()
    torch.save({"calibration": ours.state()}, file)
    file.seek(0)
    theirs = Calibration.from_state(torch.load(file, weights_only=True)["calibration"])
    np.testing.assert_array_equal(theirs.any_p_value(generated), ours.any_p_value(generated))
    np.testing.assert_array_equal(theirs.probability(generated), ours.probability(generated))
    assert (theirs.generators, theirs.limits, theirs.fitted.tolist()) == (HEADS, (0.02, 0.2), [False, True, False])
    with pytest.raises(ValueError, match="format 2"):
        Calibration.from_state({**ours.state(), "format": 2.0})


def layer_and_wanted(ties=True):
    rng = np.random.default_rng(11)
    fitted = calibration(70, ties=ties)
    logits = torch.from_numpy(dependent(rng, 400, ties=ties, scale=1.5))
    logits[0], logits[1] = 100, -100
    wanted = np.column_stack([fitted.p_values(logits), fitted.any_p_value(logits)]).astype(np.float32)
    return CalibrationLayer(fitted), logits, wanted


@pytest.mark.parametrize("ties", [False, True])
def test_the_layer_equals_numpy(ties):
    layer, logits, wanted = layer_and_wanted(ties)
    np.testing.assert_array_equal(layer(logits).numpy(), wanted)


def test_the_layer_exports():
    layer, logits, wanted = layer_and_wanted()
    traced = torch.jit.trace(layer, logits[:2])
    np.testing.assert_array_equal(traced(logits).numpy(), wanted)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(layer, (logits[:2],), dynamic_shapes=({0: batch},))
    np.testing.assert_array_equal(program.module()(logits).numpy(), wanted)


@pytest.mark.slow
def test_the_layer_exports_to_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer, logits, wanted = layer_and_wanted()
    layer.eval()
    file = tmp_path / "layer.onnx"
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    torch.onnx.export(layer, (logits[:2],), file, dynamo=True, dynamic_shapes=shapes, external_data=False)
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {session.get_inputs()[0].name: logits.numpy()})
    np.testing.assert_array_equal(found, wanted)
