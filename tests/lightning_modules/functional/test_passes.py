"""Passes: what goes together, in which order, and on how many cores."""

import threading

import pytest
import torch

from lightning_modules.functional.passes import equal_together, side_by_side

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_equal_sizes_go_together_the_most_numbers_first():
    sizes = {0: (3, 4, 4), 3: (3, 9, 9), 5: (3, 4, 4), 6: (3, 4, 4), 8: (3, 5, 1)}
    assert equal_together(sizes, 2) == [[3], [0, 5], [6], [8]]
    assert equal_together({}, 2) == []


def test_parts_run_once_each_on_single_cores_and_the_number_of_threads_stays(two_threads):
    seen: list[tuple[int, int, int]] = []
    meet = threading.Barrier(2, timeout=30)  # passes only where two parts run at the same time

    def run(part: list[int]) -> None:
        meet.wait()
        seen.append((part[0], torch.get_num_threads(), threading.get_ident()))

    side_by_side(run, [[0], [1], [2], [3]], CPU)
    assert sorted(number for number, _, _ in seen) == [0, 1, 2, 3]
    assert {threads for _, threads, _ in seen} == {1}
    assert threading.get_ident() not in {thread for _, _, thread in seen}
    assert torch.get_num_threads() == 2


def test_an_error_of_a_part_reaches_the_caller(two_threads):
    def run(part: list[int]) -> None:
        raise ValueError(f"part {part[0]}")

    with pytest.raises(ValueError, match="part 7"):
        side_by_side(run, [[7], [8]], CPU)
    assert torch.get_num_threads() == 2
