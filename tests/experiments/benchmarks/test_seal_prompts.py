"""The benchmark of cached latents: both sides take the same step."""

import json

import pytest

from experiments.benchmarks import seal_prompts


@pytest.mark.slow
def test_both_sides_have_the_same_loss_and_the_row_is_written(tmp_path, capsys):
    seal_prompts.main(["--steps", "2", "--json", str(tmp_path / "row.json")])
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["largest_loss_difference"] < 1e-4
    assert row["ratio"] > 0
    assert "2 turns" in capsys.readouterr().out
