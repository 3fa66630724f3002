"""Rankings under codecs and score normalisation, in memory and on disk, against plain numpy."""

import numpy as np
import pytest

from callbacks.metrics.copy_rankings import SearchSettings, default_codecs, rank_copies
from lightning_modules.functional.retrieval import Codec, unit_length


@pytest.fixture
def matrices():
    rng = np.random.default_rng(0)
    return [unit_length(rng.standard_normal((n, 10)).astype(np.float32)) for n in (12, 50, 40)]


@pytest.mark.parametrize("everywhere", [False, True])
def test_normalised_scores_are_inner_products_less_the_bias(matrices, tmp_path, everywhere):
    settings = SearchSettings(("Flat", "PCAW6,L2norm,Flat"), "1.0[0,2]", 4, everywhere)
    rankings = rank_copies(*matrices, settings, tmp_path)
    assert [(ranking.codec, ranking.score_norm) for ranking in rankings] == [
        ("Flat", "None"), ("PCAW6,L2norm,Flat", "None"),
        ("Flat", "1.00[0,2]"), ("PCAW6,L2norm,Flat", "1.00[0,2]"),
    ]  # fmt: skip
    for ranking in rankings:
        queries, references, background = map(Codec.fit(ranking.codec, matrices[2]), matrices)
        scores = -np.square(queries[:, None] - references).sum(-1)
        if ranking.normalised:
            nearest = np.sort(queries @ background.T, axis=1)[:, -3:].mean(1)
            scores = queries @ references.T - nearest[:, None]
        pairs = ranking.candidates
        np.testing.assert_allclose(pairs.score, scores[pairs.query, pairs.reference], atol=1e-5)
        best = np.sort(scores, axis=None)[-48:] if everywhere else np.sort(scores, axis=1)[:, -4:].ravel()
        np.testing.assert_allclose(np.sort(pairs.score), np.sort(best), atol=1e-5)
    again = rank_copies(*matrices, settings)
    for ours, theirs in zip(rankings, again, strict=True):
        assert np.array_equal(ours.candidates.score, theirs.candidates.score)
    assert rankings[0].label == ""
    assert rankings[3].slug == "PCAW6_L2norm_Flat_1.00_0_2"


def test_values_that_are_not_finite_leave_the_codec_out(matrices):
    matrices[1][7, 3] = np.nan
    with pytest.warns(UserWarning, match="Flat is left out: it gives values that are not finite"):
        assert rank_copies(*matrices, SearchSettings(("Flat",))) == []


def test_without_background_nothing_is_learnt_by_default(matrices):
    queries, references, _ = matrices
    assert default_codecs(queries, references, True) == ("Flat", "PCAW10,L2norm,Flat")
    assert default_codecs(queries, references, False) == ("Flat",)
    assert default_codecs(2 * queries, references, False) == ("Flat", "L2norm,Flat")
    assert [r.codec for r in rank_copies(queries, references, references[:0], SearchSettings())] == ["Flat"]
