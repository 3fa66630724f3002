"""Zero-shot classification: figures against brute force, in any order of batches, and the file of prompts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from callbacks.prior_separation import PriorSeparationEvaluation, best_accuracy
from callbacks.prompt_file import PromptFile
from lightning_modules.functional.detection import Ranking

COUNT = 23


@pytest.fixture(scope="module")
def errors():
    """Errors (N, kind, prompt) of real and synthetic pictures under the real and the fake prompt."""
    rng = np.random.default_rng(0)
    shared = rng.uniform(0.5, 1.5, (COUNT, 1, 1))
    own = np.array([[-0.01, 0.0], [0.0, -0.006]])
    return (shared + own + rng.normal(0, 0.01, (COUNT, 2, 2))).astype(np.float32)


class Judged(LightningModule):
    """Returns stored errors as stage 1 does."""

    def __init__(self, errors):
        super().__init__()
        self.errors = torch.from_numpy(errors)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.saved = []

    def test_step(self, batch, batch_idx):
        errors = torch.cat([self.errors[batch, 0], self.errors[batch, 1]])
        is_real = torch.arange(2 * len(batch)) < len(batch)
        return {"index": batch, "score": errors[:, 1] - errors[:, 0], "is_real": is_real, "errors": errors}

    validation_step = test_step

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def save_prompts(self, path):
        self.saved.append(path)
        save_file({"prompt_real": self.weight.detach().clone()}, path)


def evaluate(errors, folder, batch_size, order=None):
    callback = PriorSeparationEvaluation(resamples=200)
    options = {"accelerator": "cpu", "logger": False, "default_root_dir": folder, "enable_progress_bar": False}
    trainer = Trainer(callbacks=[callback], **options)
    trainer.test(Judged(errors), DataLoader(order or range(COUNT), batch_size), verbose=False)
    return {f"{r.metric}/{r.group}".rstrip("/"): r for r in callback.results}


@pytest.fixture(scope="module")
def results(errors, tmp_path_factory):
    return evaluate(errors, tmp_path_factory.mktemp("one"), 5)


def test_figures_are_those_of_brute_force(errors, results):
    score = errors[..., 1] - errors[..., 0]
    real, fake = score[:, 0], score[:, 1]
    pairs = (real[:, None] > fake[None]).mean() + 0.5 * (real[:, None] == fake[None]).mean()
    assert results["auroc"].value == pytest.approx(pairs, abs=1e-6)
    assert 0.55 < pairs < 0.999
    assert results["accuracy/real"].value == pytest.approx((real > 0).mean())
    assert results["accuracy/fake"].value == pytest.approx((fake <= 0).mean())
    assert results["accuracy"].value == pytest.approx(((real > 0).mean() + (fake <= 0).mean()) / 2)
    best = max(((real >= t).mean() + (fake < t).mean()) / 2 for t in [*score.ravel(), np.inf])
    assert results["best_accuracy"].value == pytest.approx(best)
    for kind, name in enumerate(("real", "fake")):
        for prompt, under in enumerate(("real", "fake")):
            wanted = errors[:, kind, prompt].mean()
            assert results[f"error/{name}_under_{under}"].value == pytest.approx(wanted, rel=1e-5)
    own, other = errors[:, 0, 0] + errors[:, 1, 1], errors[:, 0, 1] + errors[:, 1, 0]
    assert results["advantage_percent"].value == pytest.approx((100 * (other - own) / other).mean(), rel=1e-3)


def test_intervals_hold_the_value_and_count_both_pictures(results):
    for name in ("auroc", "accuracy", "best_accuracy", "advantage_percent"):
        assert results[name].low <= results[name].value <= results[name].high
        assert results[name].low < results[name].high
    assert results["auroc"].n == 2 * COUNT
    assert results["accuracy/real"].n == COUNT


def test_order_batches_and_repeats_do_not_matter(errors, results, tmp_path):
    order = [*reversed(range(COUNT)), 3, 4]
    again = evaluate(errors, tmp_path, 7, order)
    assert list(again) == list(results)
    for name, result in again.items():
        wanted = results[name]
        figures = (result.value, result.low, result.high)
        assert figures == pytest.approx((wanted.value, wanted.low, wanted.high), rel=1e-9)


def test_the_best_threshold_is_found_under_weights():
    ranking = Ranking.of([3.0, 2.0, 1.0], [True, False, True])
    weights = np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    np.testing.assert_allclose(best_accuracy(ranking.curve(weights)), [0.75, 0.5, 1.0])


def test_prompts_are_written_after_each_validation_and_at_the_end(errors, tmp_path):
    file = tmp_path / "learned.safetensors"
    module = Judged(errors)
    options = {"accelerator": "cpu", "logger": False, "default_root_dir": tmp_path, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=2, callbacks=[PromptFile(str(file))], enable_checkpointing=False, **options)
    trainer.fit(module, DataLoader(range(4), 2), DataLoader(range(4), 2))
    assert module.saved == [str(file)] * 3, "the sanity check leaves none"
    assert torch.equal(load_file(file)["prompt_real"], module.weight.detach())
    trainer.validate(module, DataLoader(range(4), 2), verbose=False)
    assert len(module.saved) == 3


def test_other_modules_and_file_names_are_refused():
    with pytest.raises(ValueError, match=r"must end in \.safetensors, got p\.pt"):
        PromptFile("p.pt")
    with pytest.raises(ValueError, match="SimpleNamespace has none"):
        PromptFile().setup(None, SimpleNamespace(), "fit")
