"""What the plain progress lines say."""

from types import SimpleNamespace

import pytest

from callbacks.progress import PlainProgress


def trainer(**more):
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=9))
    return SimpleNamespace(global_step=4, max_steps=-1, max_epochs=3, num_training_batches=5, fit_loop=loop, **more)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"max_steps": 8}, "train: 4/8, "), ({}, "train: 10/15, "), ({"max_epochs": -1}, "train: 10, ")],
)
def test_the_end_is_told_where_there_is_one(capsys, monkeypatch, settings, told):
    bar = PlainProgress(seconds=0)
    monkeypatch.setattr(bar, "get_metrics", lambda *_: {"v_num": 1, "loss": 0.25})
    running = trainer()
    vars(running).update(settings)
    bar.on_train_batch_end(running, None)
    line = capsys.readouterr().out
    assert line.startswith(told)
    assert ("s left" in line) == (settings != {"max_epochs": -1})
    assert line.endswith("it/s, loss 0.25\n")
