"""The table of the three tasks: what is trained on what, and differences on the same samples."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from callbacks.metrics.bootstrap import bootstrap_draws, interval_of, mean_of, value_of
from callbacks.results import Provenance, Result, save_results
from experiments.seal2real import downstream
from experiments.seal2real.downstream import TASKS, TEST_SEED, RunFigures, as_table, main, write_sets
from experiments.steps import read_results

SAMPLES = 40
PROVENANCE = Provenance("test", 0, "", "", 0, 0, 50, 0, {})


def run_of(folder, metric, better):
    """Results of a run whose samples are better by a constant."""
    values = np.random.default_rng(0).random(SAMPLES) + better
    statistic = mean_of(values)
    draws = bootstrap_draws({metric: statistic}, SAMPLES, 50)[metric]
    result = Result(metric, "", value_of(statistic, SAMPLES), *interval_of(draws), SAMPLES, draws)
    save_results([result], PROVENANCE, folder)
    return RunFigures(read_results(folder), folder)


def test_the_table_tells_what_was_and_was_not_measured(tmp_path):
    task = TASKS[0]
    found = {
        (task.name, arm): run_of(tmp_path / arm, task.metric, better)
        for arm, better in (("plain", 0.0), ("realised", 0.25))
    }
    lines = as_table([task], found).splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert cells[0] == task.title
    assert cells[2] == "not measured"
    assert float(cells[3].split()[0]) == pytest.approx(float(cells[1].split()[0]) + 0.25, abs=2e-3)
    differences = [cell.strip() for cell in lines[-1].split("|")[1:-1]]
    # All samples are better by the same, so the difference has no width however wide the two intervals are.
    assert differences[1:] == ["not measured", "+0.250 (+0.250 to +0.250)"]


def test_every_task_is_trained_on_every_set_and_tested_on_another(tmp_path, monkeypatch):
    commands, drawn = [], []

    def run(*words):
        commands.append(words)
        folder = tmp_path / f"run{len(commands)}"
        metric = next(task.metric for task in TASKS if any(task.name in word for word in commands[-1] + commands[-2]))
        if words[0] == "test":
            run_of(folder, metric, 0.0)
        return SimpleNamespace(trainer=SimpleNamespace(log_dir=str(folder)))

    commands.append(())
    monkeypatch.setattr(downstream, "run_step", run)
    monkeypatch.setattr(downstream, "seals", lambda *words: drawn.append(words))
    assert main(["--output", str(tmp_path), "--realised", "made", "--effort", "0.5", "--seed", "7"]) == 0
    assert [(Path(words[0]).name, *words[1:]) for words in drawn] == [
        ("plain", 300, 512, "clean", 7),
        ("degraded", 300, 512, "degraded", 7),
        ("test", 150, 512, "degraded", 7 + TEST_SEED),
    ]
    fits = [words for words in commands if words and words[0] == "fit"]
    assert len(fits) == 9
    for words in fits:
        assert words[words.index("--data.test") + 1] == str(tmp_path / "test")
        task = next(task for task in TASKS if task.name in words[2])
        assert words[words.index("--trainer.max_steps") + 1] == str(round(task.steps / 2))
    trained = {words[words.index("--data.train") + 1] for words in fits}
    assert trained == {str(tmp_path / "plain"), str(tmp_path / "degraded"), "made"}
    assert "not measured" not in (tmp_path / "downstream.md").read_text()


def test_sets_are_written_where_the_table_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(downstream, "seals", lambda *words: None)
    monkeypatch.setattr(downstream, "run_step", lambda *words: pytest.fail("only the sets were asked for"))
    assert main(["--output", str(tmp_path), "--sets-only"]) == 0
    assert write_sets(tmp_path, 1, 1, 64, 0)["test"] == tmp_path / "test"
