"""Which pictures are real, which generator drew the others, and which split each is in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from numpy.typing import NDArray

from datamodules.images.listing import ImageListing
from datamodules.images.manifests import read_manifest
from datamodules.images.photos import paths_in, positions_of_split
from datamodules.images.sources import FileSource, ImageSource, ProceduralSource, open_images
from datamodules.images.splits import Split, positions_of
from datamodules.transforms.toy_generators import TOY_GENERATORS, generate

REAL = "real"
TOY_SCHEME = "toy://"
_TOY_FORM = "toy://NAME?count=1000000&seed=7&size=256"
TOY_SEED = 1000  # the first of the seeds that toy generators draw from; real scenes have seed 0 unless told
Spec = str | Sequence[str]

SPLIT_NAMES: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LABELS = {"0": REAL, "real": REAL, "": REAL, "1": "generated", "fake": "generated", "generated": "generated"}
# The published scheme of folders.
REAL_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("mit5k", "dresden", "coco_train"),
    "val": ("coco_val", "hdrburst"),
    "test": ("raise",),
}
TEST_FOLDERS = {
    "sd1": "stable-diffusion-1-3",
    "sd2": "stable-diffusion-2",
    "sdxl": "stable-diffusion-xl",
    "dalle2": "dalle2",
    "dalle3": "dalle3",
    "midjourney": "midjourney-v5",
    "firefly": "firefly",
}


class ToySource:
    """Scenes as a toy generator draws them; they need no files.

    Args:
        name: One of `TOY_GENERATORS`.
        scenes: What is passed through it.
    """

    def __init__(self, name: str, scenes: ProceduralSource) -> None:
        self.name = name
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def path(self, index: int) -> str:
        """`toy://NAME/SEED/INDEX`."""
        return f"{TOY_SCHEME}{self.name}/{self.scenes.path(index).removeprefix('procedural://')}"

    def read(self, index: int, target_size: int | None = None) -> NDArray[np.uint8]:
        """The picture at a position, always at the size of the source."""
        return generate(self.scenes.read(index), self.name)


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Pictures of one origin and one split.

    Args:
        source: Where they come from.
        positions: Which of the source.
        generator: `real`, or who drew them.
        name: Of the set.
    """

    source: ImageSource
    positions: Sequence[int] | NDArray[np.int64]
    generator: str
    name: str

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def is_real(self) -> bool:
        """Whether these are photographs, or their stand-ins."""
        return self.generator == REAL


def open_pictures(spec: Spec) -> ImageSource:
    """Return a source of files, folders, manifests, drawn scenes or a toy generator's pictures."""
    if isinstance(spec, str) and spec.startswith(TOY_SCHEME):
        return _open_toy(spec)
    return open_images(spec if isinstance(spec, str) else list(spec))


def _open_toy(address: str) -> ToySource:
    parts = urlsplit(address)
    name, options = parts.netloc, dict(parse_qsl(parts.query, keep_blank_values=True))
    if name not in TOY_GENERATORS:
        raise ValueError(f"{address!r} names no toy generator: take one of {', '.join(TOY_GENERATORS)}")
    if parts.path.strip("/") or set(options) - {"count", "seed", "size"}:
        raise ValueError(f"cannot understand {address!r}: the form is {_TOY_FORM}")
    if not all(value.isascii() and value.isdigit() for value in options.values()):
        raise ValueError(f"count, seed and size in {address!r} must be whole numbers: the form is {_TOY_FORM}")
    given = {key: int(value) for key, value in options.items()}
    seed = TOY_SEED + list(TOY_GENERATORS).index(name)
    return ToySource(name, ProceduralSource(**{"count": 1_000_000, "seed": seed, "size": 512} | given))


def named_sets(
    real: Spec, generators: Mapping[str, Spec], tests: Mapping[str, Spec | None], split: Split, holdout: float
) -> list[PictureSet]:
    """Return the sets of a split: the real one first, then the generators in their order.

    Args:
        real: Real pictures.
        generators: Pictures by generator.
        tests: By `real` and generator, pictures of the test split alone; None takes the hashed test part.
        split: Which split.
        holdout: Share of files that is not trained on, half of it validation, half test.
    """
    if REAL in generators:
        raise ValueError(f"data.generators.{REAL}: these are the real pictures, name them with --data.real")
    sets = []
    for name, spec in {REAL: real, **generators}.items():
        tested = tests.get(name)
        what = REAL if name == REAL else f"generators.{name}"
        sets.append(_split_set(spec, tested, split, holdout, name, what))
    if split == "test":
        # Generators that are only tested on: how a detector answers to what it has not seen.
        unseen = {name: spec for name, spec in tests.items() if spec is not None and name not in {REAL, *generators}}
        sets += [_whole_set(spec, name, name) for name, spec in unseen.items()]
    _refuse_common_scenes(sets)
    return sets


def _split_set(spec: Spec, tested: Spec | None, split: Split, holdout: float, name: str, what: str) -> PictureSet:
    if split == "test" and tested is not None:
        return _whole_set(tested, name, name)
    source = open_pictures(spec)
    if not isinstance(source, FileSource):
        # Scenes are functions of their number: training counts from 0, the frozen sets lie at the far end.
        held = max(1, len(source) // 100)
        edges = {"train": (0, len(source) - 2 * held), "val": (len(source) - 2 * held, len(source) - held)}
        return PictureSet(source, range(*edges.get(split, (len(source) - held, len(source)))), name, name)
    given = spec if isinstance(spec, str) else list(spec)
    apart = tested if tested is None or isinstance(tested, str) else list(tested)
    positions = positions_of_split(paths_in(source), split, what, given, apart, holdout)
    return PictureSet(source, positions, name, name)


def _whole_set(spec: Spec, generator: str, name: str) -> PictureSet:
    source = open_pictures(spec)
    return PictureSet(source, range(len(source)), generator, name)


def _refuse_common_scenes(sets: Sequence[PictureSet]) -> None:
    """Refuse drawn sets with one seed: the same scene would be real here and generated there."""
    seen: dict[int, str] = {}
    for part in sets:
        scenes = part.source.scenes if isinstance(part.source, ToySource) else part.source
        if isinstance(scenes, ProceduralSource):
            if scenes.seed in seen:
                raise ValueError(f"{part.name} draws the scenes of {seen[scenes.seed]}: give it another seed")
            seen[scenes.seed] = part.name


def manifest_sets(manifest: str, split: Split, holdout: float) -> list[PictureSet]:
    """Return the sets of a split of a manifest with a column `generator` or `label`, by generator and source.

    A column `split` decides where there is one; else the names of the files do.

    Args:
        manifest: CSV or JSON Lines: path, generator or label, and perhaps source and split.
        split: Which split.
        holdout: Share of files that is not trained on, half of it validation, half test.
    """
    listing, columns = read_manifest(manifest, keep=("generator", "label", "source", "split"))
    if not {"generator", "label"} & set(columns):
        raise ValueError(f"manifest {manifest!r} has no column 'generator' or 'label': say who drew each picture")
    count = len(listing)
    generators = [_generator_of(columns, row, manifest) for row in range(count)]
    chosen = (
        np.flatnonzero([_split_of(value, row, manifest) == split for row, value in enumerate(columns["split"])])
        if "split" in columns
        else positions_of(listing, split, holdout)
    )
    groups: dict[tuple[str, str], list[int]] = {}
    for row in chosen.tolist():
        named = str(columns["source"][row] or "") if "source" in columns else ""
        groups.setdefault((generators[row], named or generators[row]), []).append(row)
    if not groups:
        raise ValueError(f"manifest {manifest!r} has no picture of the {split} split: add some or raise data.holdout")
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] != REAL, item[1][0]))
    # One listing with positions into it: a million paths are kept once.
    source = FileSource(listing)
    return [PictureSet(source, np.asarray(rows, np.int64), *names) for names, rows in ordered]


def _generator_of(columns: Mapping[str, list[object]], row: int, manifest: str) -> str:
    named = str(columns["generator"][row] or "").strip() if "generator" in columns else ""
    if "label" not in columns:
        return named or REAL
    label = str("" if columns["label"][row] is None else columns["label"][row]).strip().lower().removesuffix(".0")
    if label not in LABELS:
        raise ValueError(f"manifest {manifest!r}, picture {row + 1}: label {label!r} is none of 0, 1, real, generated")
    # An empty label says nothing, so that the generator alone decides.
    if label == "" or (LABELS[label] != REAL and named):
        return named or REAL
    if LABELS[label] == REAL and named not in ("", REAL):
        raise ValueError(f"manifest {manifest!r}, picture {row + 1}: labelled real, but generator is {named!r}")
    return LABELS[label]


def _split_of(value: object, row: int, manifest: str) -> Split:
    name = str(value or "").strip().lower()
    if name not in SPLIT_NAMES:
        raise ValueError(
            f"manifest {manifest!r}, picture {row + 1}: split {name!r} is none of {', '.join(SPLIT_NAMES)}"
        )
    return SPLIT_NAMES[name]


def scheme_sets(root: str, split: Split, test_folder: str = "JPEG_Qrandom") -> list[PictureSet]:
    """Return the sets of a split of the published scheme of folders.

    Real training pictures lie in `processed_data/train`, generated ones in `data/newsynth/NAME`, of which a tenth, by
    a hash of the name, is for validation: a prompt's pictures of all generators have one name and stay together.

    Args:
        root: The folder that holds `data` and `processed_data`.
        split: Which split.
        test_folder: The prepared test sets below `processed_data`.
    """
    base = Path(root)
    if split == "test":
        tested = base / "processed_data" / test_folder
        reals = [tested / name for name in REAL_FOLDERS["test"]]
        fakes = {name: tested / "synthbuster" / folder for name, folder in TEST_FOLDERS.items()}
        parts: tuple[Split, ...] | None = None
    else:
        places = ("train", "valid", "val") if split == "val" else ("train",)
        reals = [base / "processed_data" / place / name for place in places for name in REAL_FOLDERS[split]]
        fakes = {name: base / "data" / "newsynth" / name for name in TEST_FOLDERS}
        # Half of a holdout of a fifth is a tenth; the other half is trained on, for the test sets are others.
        parts = ("val",) if split == "val" else ("train", "test")
    sets = [_whole_set(str(folder), REAL, folder.name) for folder in reals if folder.is_dir()]
    if not sets:
        raise FileNotFoundError(
            f"data.root {root!r} has no real pictures for {split}: expected one of {_listed(reals)}"
        )
    sets += [_hashed_part(folder, name, parts) for name, folder in fakes.items() if folder.is_dir()]
    if all(part.is_real for part in sets):
        folders = list(fakes.values())
        raise FileNotFoundError(f"data.root {root!r} has no generated pictures: expected one of {_listed(folders)}")
    return sets


def _hashed_part(folder: Path, name: str, splits: tuple[Split, ...] | None) -> PictureSet:
    source = FileSource(ImageListing.scan(folder))
    if splits is None:
        return PictureSet(source, range(len(source)), name, folder.name)
    parts = [positions_of(source.listing, split, 0.2) for split in splits]
    return PictureSet(source, np.sort(np.concatenate(parts)), name, folder.name)


def _listed(folders: Sequence[Path]) -> str:
    return ", ".join(str(folder) for folder in folders)


def at_most(part: PictureSet, count: int | None) -> PictureSet:
    """Return a set of `count` pictures at even distances, or the set itself where it has no more."""
    if count is None or len(part) <= count:
        return part
    kept = np.asarray(part.positions)[np.linspace(0, len(part) - 1, count).round().astype(np.int64)]
    return PictureSet(part.source, kept, part.generator, part.name)
