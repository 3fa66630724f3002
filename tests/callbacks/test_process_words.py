"""What the words of all processes mean for each of them."""

import pytest
from torch.distributed import DistBackendError

from callbacks.process_words import LOST, Word, explain_worker, is_from_collective, judge


def words(*ends: str) -> list[Word]:
    codes = {"stopped": 143, "failed": 2, "cut off": LOST}
    return [
        Word(rank, "host", 100 + rank, f"step {rank}", 3.0, end, codes.get(end, 0), f"why {rank}")  # type: ignore[arg-type]
        for rank, end in enumerate(ends)
    ]


@pytest.mark.parametrize(
    ("ends", "kinds"),
    [
        (("", "", ""), ("go on", "go on", "go on")),
        (("done", "", "done"), ("go on", "go on", "go on")),
        (("done", "done", "done"), ("rest", "rest", "rest")),
        (("", "failed", "done"), ("end", "rest", "end")),
        (("cut off", "", "failed"), ("end", "end", "rest")),
        (("cut off", "", "cut off"), ("end", "end", "end")),
        (("stopped", "", "done"), ("rest", "stop", "end")),
        (("failed", "failed", "stopped"), ("rest", "rest", "end")),
    ],
)
def test_every_rank_knows_what_to_do(ends: tuple[str, ...], kinds: tuple[str, ...]) -> None:
    assert tuple(judge(words(*ends), rank).kind for rank in range(3)) == kinds


def test_an_error_ends_the_others_with_its_line_and_code() -> None:
    action = judge(words("cut off", "failed"), 0)
    assert (action.line, action.code) == ("rank 0 ends, as rank 1 ended with: why 1", 2)
    assert not action.advice


def test_who_waited_in_vain_tells_the_places_and_who_was_waited_for_its_stack() -> None:
    one, two = (judge(words("cut off", ""), rank) for rank in (0, 1))
    places = "waited for each other in vain: rank 0 at step 0 for 3 s, rank 1 at step 1 for 3 s"
    assert one.line.endswith(f"{places}; rank 0 was told: why 0")
    assert (one.code, one.stack, one.advice) == (LOST, False, True)
    assert (two.line, two.code, two.stack) == ("rank 1 ends, as rank 0 waited for it in vain", LOST, True)


def test_a_stop_of_one_is_the_stop_of_all() -> None:
    action = judge(words("", "stopped"), 0)
    assert (action.kind, action.code) == ("stop", 143)
    assert action.who is not None
    assert action.who.rank == 1


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (RuntimeError("[/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:6306"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (DistBackendError("anything"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("the folder gloo/transport is empty"), False),
    ],
)
def test_errors_of_collectives_are_known(error: Exception, wanted: bool) -> None:
    assert is_from_collective(error) is wanted


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "lower data.num_workers or data.batch_size"),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "most often the memory is full"),
        ("DataLoader timed out after 5 seconds", "raise --process_watch.worker_timeout"),
    ],
)
def test_lost_data_workers_are_one_line_with_what_to_do(told: str, wanted: str) -> None:
    explained = explain_worker(RuntimeError(told))
    assert explained is not None
    assert wanted in str(explained)
    assert str(explained).startswith(told.strip().rstrip("."))
    assert "\n" not in str(explained)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("DataLoader timed out after 5 seconds")])
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert explain_worker(error) is None
