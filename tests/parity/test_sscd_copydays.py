"""Copydays' file list, matches and figures equal the reference's, from recorded descriptors of all 3212 images."""

import numpy as np
import pytest

from callbacks.metrics.bootstrap import value_of
from callbacks.metrics.copy_rankings import SearchSettings, at_indices, rank_copies
from callbacks.metrics.copy_statistics import copydays_statistics
from datamodules.copydays import BLOCKS, CopydaysDataModule

METHOD = "sscd"
METRICS, METRIC_FACTS = "metrics.safetensors", "metrics_manifest.json"


def codec_cases(folder):
    return folder.json(METRIC_FACTS)["copydays"]["results"] if folder.has(METRIC_FACTS) else {}


@pytest.fixture(scope="session")
def layout(tmp_path_factory):
    """Copydays' folders with empty files of the recorded names, made once."""
    made = {}

    def of(strong_files):
        if not made:
            root = tmp_path_factory.mktemp("copydays")
            originals = [f"{2000 + i:04d}00.jpg" for i in range(157)]
            for block in BLOCKS:
                (root / block).mkdir(parents=True)
                for name in strong_files if block == "strong" else originals:
                    (root / block / name).touch()
            made["root"] = root
        return made["root"]

    return of


@pytest.mark.golden(METHOD, "copydays", codec_cases)
def test_copydays_of_recorded_descriptors(golden, layout, tmp_path):
    facts, tensors = golden.folder.json(METRIC_FACTS)["copydays"], golden.tensors(METRICS)
    assert list(BLOCKS) == facts["block_names"]
    (tmp_path / "d").mkdir()
    for i in range(facts["n_distractors"]):
        (tmp_path / "d" / f"{i:04d}.jpg").touch()
    data = CopydaysDataModule(str(layout(facts["strong_files"])), distractors=str(tmp_path / "d"))
    data.setup("test")
    task = data.retrieval_task("test")
    embeddings = tensors["copydays.embeddings"]
    references = np.concatenate([embeddings[:157], tensors["copydays.distractors"]])
    queries, held = np.flatnonzero(task.role == 1), np.flatnonzero(task.role == 0)
    assert (len(queries), len(held)) == (facts["len"], len(references))
    settings = SearchSettings((golden.id,), None, facts["k"])
    (ranking,) = rank_copies(embeddings, references, tensors["copydays.codec_train"], settings)
    candidates = at_indices(ranking.candidates, queries, held)
    found = {
        name: value_of(statistic, len(queries))
        for name, statistic in copydays_statistics(candidates, task.pairs, queries, task.groups).items()
    }
    wanted = golden.value
    # Float32 near-ties can swap two ranks; a codec's own rounding differs from faiss's.
    for block in BLOCKS:
        assert found[f"mAP/{block}"] == pytest.approx(wanted["all"][f"{block} mAP"], abs=1e-6), block
    assert found["strong_mAP"] == pytest.approx(wanted["csv_row"]["strong_mAP"], abs=1e-6)
    assert found["overall_uAP"] == pytest.approx(wanted["csv_row"]["overall_uAP"], abs=1e-6)
