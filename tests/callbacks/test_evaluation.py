import hashlib
import json
from typing import ClassVar

import pytest
import torch
from lightning.pytorch.loggers import WandbLogger

from callbacks.evaluation import EvaluationCallback
from callbacks.metrics.bootstrap import mean_of


class MeanProbability(EvaluationCallback):
    required_outputs: ClassVar = ("probability", "family")
    text_columns: ClassVar = ("family",)
    columns = ("probability",)

    def rows(self, pl_module, outputs, batch):
        return {"probability": outputs["probability"].flatten(1).mean(1), "family": outputs["family"]}

    def summarise(self, table):
        return {
            "mean": mean_of(table["probability"]),
            "mean/text": mean_of(table["probability"], table["family"] == "text"),
            "mean/nobody": mean_of(table["probability"], table["family"] == "nobody"),
        }


def expected_mean(echo, family=None):
    data = [echo.EchoData()[i] for i in range(echo.SAMPLES)]
    chosen = [row["probability"].mean().item() for row in data if family in (None, row["family"])]
    return sum(chosen) / len(chosen)


def test_values_are_logged_and_written(echo, tmp_path, capsys):
    callback = MeanProbability()
    run = echo.trainer(tmp_path, [callback])
    (logged,) = run.test(echo.EchoModule(), echo.loader(), verbose=False)
    assert logged["test/mean"] == pytest.approx(expected_mean(echo), rel=1e-6)
    assert logged["test/mean/text"] == pytest.approx(expected_mean(echo, "text"), rel=1e-6)
    assert "test/mean/nobody" not in logged  # nothing to say about no samples
    document = json.loads((tmp_path / "version_0" / "results.json").read_text())
    rows = {(row["metric"], row["group"]): row for row in document["results"]}
    assert rows["mean", "text"]["n"] == 2
    assert rows["mean", "nobody"]["value"] is None
    assert rows["mean", ""]["low"] < rows["mean", ""]["value"] < rows["mean", ""]["high"]
    printed = capsys.readouterr().out
    assert "mean/text" in printed
    assert "results.csv" in printed


def test_a_missing_output_is_named_with_who_should_return_it(echo, tmp_path):
    run = echo.trainer(tmp_path, [MeanProbability()])
    module = echo.EchoModule(leave_out=("probability", "image"))
    with pytest.raises(ValueError, match="probability") as error:
        run.test(module, echo.loader(), verbose=False)
    assert str(error.value) == (
        "MeanProbability needs 'probability' from EchoModule.test_step, which returned only "
        "['family', 'ignore', 'index', 'mask', 'opacity']"
    )


def test_a_step_that_returns_nothing_is_named(echo, tmp_path):
    module = echo.EchoModule()
    module.validation_step = lambda batch, batch_idx: None
    run = echo.trainer(tmp_path, [MeanProbability()])
    with pytest.raises(ValueError, match=r"'index' from EchoModule.validation_step, which returned only NoneType"):
        run.validate(module, echo.loader(), verbose=False)


def test_several_loaders_are_refused(echo, tmp_path):
    run = echo.trainer(tmp_path, [MeanProbability()])
    with pytest.raises(ValueError, match="evaluates one loader"):
        run.test(echo.EchoModule(), [echo.loader(), echo.loader()], verbose=False)


def test_unknown_stages_are_refused():
    with pytest.raises(ValueError, match=r"`stages` of MeanProbability .* got \['fit'\]"):
        MeanProbability(stages=["fit"])


def test_validation_writes_when_asked_and_the_sanity_check_never_does(echo, tmp_path):
    callback = MeanProbability(stages=["val"])
    run = echo.trainer(tmp_path, [callback], max_epochs=1, limit_train_batches=0, num_sanity_val_steps=2)
    run.fit(echo.EchoModule(), echo.loader(), echo.loader())
    assert not (tmp_path / "version_0" / "results_val.json").exists()
    run = echo.trainer(tmp_path, [callback], max_epochs=1, num_sanity_val_steps=1)
    run.fit(echo.EchoModule(), echo.loader(), echo.loader())
    document = json.loads((tmp_path / "version_1" / "results_val.json").read_text())
    assert document["results"][0]["n"] == echo.SAMPLES
    assert document["provenance"]["stage"] == "val"
    assert run.callback_metrics["val/mean"] == pytest.approx(expected_mean(echo), rel=1e-6)


def test_fast_dev_run_writes_nothing(echo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = echo.trainer(tmp_path, [MeanProbability()], fast_dev_run=True)
    (logged,) = run.test(echo.EchoModule(), echo.loader(), verbose=False)
    assert "test/mean" in logged
    assert list(tmp_path.rglob("results*")) == []


def test_provenance_names_config_seed_and_checkpoint(echo, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "41")
    config = tmp_path / "version_0" / "config.yaml"
    config.parent.mkdir()
    config.write_text("model: echo\n")
    run = echo.trainer(tmp_path, [MeanProbability(output_dir=str(tmp_path / "out"))])
    run.logger._version = 0
    checkpoint = tmp_path / "some.ckpt"
    run.strategy.connect(echo.EchoModule())
    run.save_checkpoint(checkpoint)
    run.test(echo.EchoModule(), echo.loader(), ckpt_path=str(checkpoint), verbose=False, weights_only=True)
    provenance = json.loads((tmp_path / "out" / "results.json").read_text())["provenance"]
    assert provenance["config_sha256"] == hashlib.sha256(config.read_bytes()).hexdigest()
    assert provenance["seed"] == 41
    assert provenance["checkpoint"] == str(checkpoint)


def test_repeated_samples_count_once(echo, tmp_path):
    run = echo.trainer(tmp_path, [MeanProbability()])
    twice = torch.utils.data.Subset(echo.EchoData(), [*range(echo.SAMPLES), 0, 0, 3])
    run.test(echo.EchoModule(), torch.utils.data.DataLoader(twice, batch_size=5), verbose=False)
    assert run.callback_metrics["test/mean"] == pytest.approx(expected_mean(echo), rel=1e-6)


class FakeWandb(WandbLogger):
    def __init__(self, folder):
        self.folder, self.tables = folder, []

    save_dir = property(lambda self: str(self.folder))
    name = version = property(lambda self: "fake")
    log_metrics = log_hyperparams = log_graph = save = finalize = lambda self, *args, **kwargs: None

    def log_table(self, key, columns, data):
        self.tables.append((key, columns, data))


def test_wandb_gets_the_table(echo, tmp_path):
    logger = FakeWandb(tmp_path)
    run = echo.trainer(tmp_path, [MeanProbability()], logger=logger)
    run.test(echo.EchoModule(), echo.loader(), verbose=False)
    ((key, columns, data),) = logger.tables
    assert key == "test/results"
    assert [row[columns.index("group")] for row in data] == ["", "text", "nobody"]
    assert all(len(row) == len(columns) for row in data)
