import pytest

from lightning_modules.sscd.module import learning_rate_factor

METHOD = "sscd"
FACTS = "losses_manifest.json"
REAL, TOY = "real_run_244_steps_per_epoch_warmup5_epochs100_base4.8", "toy_warmup4_total12_base1"
SETTINGS = {REAL: (4.8, 24400, 1220), TOY: (1.0, 12, 4)}


@pytest.mark.golden(METHOD, "schedule", lambda folder: [REAL, TOY] if folder.has(FACTS) else [])
def test_learning_rate(golden):
    peak, total, warmup = SETTINGS[golden.id]
    rates = golden.folder.json(FACTS)["schedule"][golden.id]
    for step, rate in rates.items() if isinstance(rates, dict) else enumerate(rates):
        ours = peak * learning_rate_factor(int(step), total, warmup, cosine=True)
        assert ours == pytest.approx(rate, rel=1e-9, abs=1e-12)
