import numpy as np
import pytest

from callbacks.descriptor_store import StoredDescriptors
from experiments.benchmarks import retrieval

COUNTS = (60, 24, 40)


@pytest.fixture
def folder(tmp_path):
    retrieval.write_descriptors(tmp_path, COUNTS, size=16)
    return tmp_path


def test_every_second_query_is_a_copy(folder):
    everything = StoredDescriptors(folder).select(np.arange(124), folder / "all.f32")[1]
    references, queries = everything[:60], everything[60:84]
    np.testing.assert_allclose(np.linalg.norm(everything, axis=1), 1, rtol=1e-5)
    likeness = (queries[::2] * references[:12]).sum(1)
    assert np.median(likeness) > 0.5 > np.abs((queries[1::2] * references[:12]).sum(1)).mean()


def test_both_sides_answer_and_the_figures_are_of_the_planted_copies(folder):
    ours, theirs = retrieval.evaluate(folder, COUNTS, resamples=3), retrieval.search(folder, COUNTS, size=16)
    assert ours["seconds"] > 0 < theirs["seconds"]
    assert 0.3 < ours["uAP"] < 1
    assert ours["uAP SN 1.00[0,2]"] != ours["uAP"]
