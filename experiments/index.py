"""`sealmark index`: descriptors that stay, to search for copies among them; one typed function a job."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from callbacks.prediction_files import TEMPORARY_SUFFIX, explained
from experiments.one_line import check_at_least

if TYPE_CHECKING:
    from experiments.copy_index.calibration import Judge
    from experiments.copy_index.manifest import Kind, Manifest
    from experiments.copy_index.searching import CopyIndex
    from lightning_modules.functional.retrieval import Candidates, Floats

    Queries = Iterator[tuple[list[str], Floats]]
QUERIES_AT_ONCE = 1024


def build(
    output: Path, descriptors: list[Path] | Path, kind: Literal["auto", "flat", "ivf", "ivf_pq"] = "auto"
) -> None:
    """Make an index of the descriptors that `sealmark predict` wrote, and measure how well it finds.

    Args:
        output: Folder for the index.
        descriptors: Output folder of `sealmark predict`, or several.
        kind: flat is exact; ivf looks at some lists of descriptors; ivf_pq also compresses them. auto goes by number.
    """
    from experiments.copy_index import writing
    from experiments.copy_index.inputs import DescriptorFolders

    wanted: Kind | None = None if kind == "auto" else kind
    manifest = writing.build(output, DescriptorFolders(_listed(descriptors)), wanted)
    print(_described(output, manifest))


def add(
    index: Path, descriptors: list[Path] | Path, duplicates: Literal["refuse", "replace", "skip"] = "refuse"
) -> None:
    """Add descriptors to an index; killed at any moment, the index is the old one or the new one.

    Args:
        index: Folder of the index.
        descriptors: Output folder of `sealmark predict`, or several.
        duplicates: What to do with images whose path is in the index.
    """
    from experiments.copy_index import writing
    from experiments.copy_index.inputs import DescriptorFolders

    manifest, added, replaced = writing.add(index, DescriptorFolders(_listed(descriptors)), duplicates)
    print(f"added {added:,}, of which {replaced:,} replace older ones\n{_described(index, manifest)}")


def search(
    index: Path,
    output: Path,
    descriptors: list[Path] | Path | None = None,
    images: list[str] | str | None = None,
    ckpt_path: Path | None = None,
    module: str | None = None,
    hparams: dict[str, Any] | None = None,
    matches: int = 5,
    precision: float = 0.9,
    pictures: int = 8,
) -> None:
    """Search for copies: of described images, or of images that are described now.

    Writes `matches.jsonl`, a line a query with paths, scores and verdicts of its best matches, and `matches.png`.

    Args:
        index: Folder of the index.
        output: Folder for the answers.
        descriptors: Output folder of `sealmark predict`, or several.
        images: Instead: an image, a folder, a manifest, or a list of these.
        ckpt_path: Checkpoint or weights of the index's model, for images.
        module: Class path of the module, for files that do not say which made them; SSCD where none is given.
        hparams: Hyper-parameters that the file lacks, such as {"backbone":"resnet18"}.
        matches: How many a query.
        precision: From which precision on a match is called a copy.
        pictures: Queries in the picture; 0 for no picture.
    """
    from experiments.copy_index.searching import CopyIndex

    if (descriptors is None) == (images is None):
        raise ValueError("give either --descriptors or --images to search for")
    if matches < 1 or pictures < 0 or not 0 < precision <= 1:
        raise ValueError("--matches is at least 1, --pictures at least 0, --precision in (0, 1]")
    opened = CopyIndex.open(index)
    judge = _judge(opened.manifest, precision)
    if images is None:
        queries = _described_queries(opened, _listed(descriptors or []))
    else:
        listed = images if isinstance(images, list) else [images]
        queries = _embedded_queries(opened, listed, ckpt_path, class_path=module, hparams=hparams)
    first: list[dict[str, Any]] = []
    count = copies = 0
    path = output / "matches.jsonl"
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with explained(path):
        output.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as file:
            for record in _answers(opened, queries, matches, judge):
                file.write(json.dumps(record) + "\n")
                first += [record] if len(first) < pictures else []
                count += 1
                copies += any(match["verdict"] == "copy" for match in record["matches"])
        os.replace(temporary, path)
    if first:
        from experiments.copy_index.match_pictures import save_matches

        save_matches(output / "matches.png", first)
    found = f", {copies} with a copy in the index" if judge(1.0)["verdict"] else ""
    print(f"{path}: {count} queries{found}\n{judge.told}")


def calibrate(index: Path, descriptors: list[Path] | Path, pairs: Path, matches: int = 10) -> None:
    """Measure what scores mean: the precision at each, on queries whose true copies are known.

    All images of the descriptors are searched for; those without a pair show how unrelated images score.

    Args:
        index: Folder of the index, which holds the references.
        descriptors: Output folder of `sealmark predict` for the queries, or several.
        pairs: CSV (query,reference) or JSON Lines ({"query": …, "reference": …}) of all true pairs, by path.
        matches: Candidates a query.
    """
    check_at_least(1, matches=matches)
    from experiments.copy_index.calibration import PrecisionCurve, read_pairs
    from experiments.copy_index.searching import CopyIndex
    from experiments.copy_index.writing import set_calibration

    opened = CopyIndex.open(index)
    numbers, candidates = _candidates(opened, _described_queries(opened, _listed(descriptors)), matches)
    known = {(query, reference) for query, reference in read_pairs(pairs) if query in numbers}
    if not known:
        raise ValueError(f"no query of {pairs} is among the descriptors: the paths must be the same")
    ids = np.unique(candidates.reference)
    names = dict(zip(opened.paths(ids), ids.tolist(), strict=True))
    # References that no query found make no candidate right or wrong.
    truth = [(numbers[query], names[reference]) for query, reference in known if reference in names]
    curve = PrecisionCurve.fit(candidates, np.array(truth, np.int64).reshape(-1, 2))
    about = {"queries": len(numbers), "pairs": len(known), "rows": opened.manifest.rows}
    set_calibration(index, {"score": curve.score.tolist(), "precision": curve.precision.tolist()} | about)
    print(f"calibrated on {len(numbers)} queries with {len(known)} true pairs, {len(candidates)} candidates")
    for wanted in (0.5, 0.9, 0.99):
        threshold = curve.threshold(wanted)
        print(f"  precision {wanted:g}: " + ("at no score" if threshold is None else f"score {threshold:.4f}"))


COMMANDS = {"build": build, "add": add, "search": search, "calibrate": calibrate}


def _candidates(index: CopyIndex, queries: Queries, count: int) -> tuple[dict[str, int], Candidates]:
    """Return a number for each query's path, and the best matches of all queries."""
    from lightning_modules.functional.retrieval import Candidates

    numbers: dict[str, int] = {}
    asked, found, scores = [], [], []
    for paths, rows in queries:
        best, ids = index.search(rows, count)
        here = [numbers.setdefault(path, len(numbers)) for path in paths]
        asked.append(np.repeat(np.array(here, np.int64), count))
        found.append(ids.ravel())
        scores.append(best.ravel())
    ids = np.concatenate(found)
    return numbers, Candidates(np.concatenate(asked)[ids >= 0], ids[ids >= 0], np.concatenate(scores)[ids >= 0])


def _answers(index: CopyIndex, queries: Queries, count: int, judge: Judge) -> Iterator[dict[str, Any]]:
    """Yield a record a query, its matches best first."""
    for paths, rows in queries:
        best, ids = index.search(rows, count)
        for path, scores, found in zip(paths, best.tolist(), ids, strict=True):
            there = found[found >= 0]
            named = zip(index.paths(there), scores, strict=False)
            matches = [{"path": name, "score": round(score, 6)} | judge(score) for name, score in named]
            yield {"path": path, "matches": matches}


def _described_queries(index: CopyIndex, folders: list[Path]) -> Queries:
    """Yield paths and descriptors of predict folders, a block at a time."""
    from experiments.copy_index.inputs import DescriptorFolders
    from experiments.copy_index.writing import check_model

    inputs = DescriptorFolders(folders)
    check_model(index.folder, index.manifest, inputs)
    paths = inputs.paths()
    for start in range(0, len(inputs), QUERIES_AT_ONCE):
        rows = inputs[start : start + QUERIES_AT_ONCE]
        yield list(islice(paths, len(rows))), rows


def _embedded_queries(index: CopyIndex, images: list[str], ckpt_path: Path | None, **loading: Any) -> Queries:
    """Yield paths and descriptors of images, described now."""
    from experiments.copy_index.embedding import embed_images, load_describer

    if ckpt_path is None:
        raise ValueError("--images needs --ckpt_path: the checkpoint or weights that the index's descriptors are from")
    module = load_describer(ckpt_path, index.manifest.model.get("fingerprint"), **loading)
    yield from embed_images(module, images)


def _judge(manifest: Manifest, precision: float) -> Judge:
    from experiments.copy_index.calibration import Judge, PrecisionCurve, is_published

    stored = manifest.calibration
    curve = PrecisionCurve(np.array(stored["score"]), np.array(stored["precision"])) if stored else None
    return Judge(curve, is_published(manifest.model), precision)


def _described(folder: Path, manifest: Manifest) -> str:
    parts = f"{manifest.rows:,} descriptors of {manifest.dims} numbers in {len(manifest.segments)} segments"
    quality = manifest.quality
    if quality is None:
        return f"{folder}: {manifest.kind}, {parts}"
    looked = "" if manifest.kind == "flat" else f", {manifest.nprobe} of {quality['lists']} lists looked at"
    return (
        f"{folder}: {manifest.kind}, {parts}{looked}\n"
        f"recall@1 {quality['recall_at_1']:.3f}, recall@10 {quality['recall_at_10']:.3f} of the exact search's first "
        f"answers: {quality['queries']} queries at a cosine of {quality['cosine']:g} to rows of the index, measured "
        f"when it was built with {quality['rows']:,}"
    )


def _listed(paths: list[Path] | Path) -> list[Path]:
    return paths if isinstance(paths, list) else [paths]
