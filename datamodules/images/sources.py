"""Where images come from: files in folders and manifests, or scenes drawn from a number."""

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from numpy.typing import NDArray

from datamodules.images.decoding import LIMIT, pixel_limit, read_image
from datamodules.images.listing import ImageListing
from datamodules.images.manifests import MANIFEST_EXTENSIONS, read_manifest
from datamodules.images.randomness import sample_rng

PROCEDURAL_SCHEME = "procedural://"
MOST_SCENES = 1 << 48  # seeds of scenes and arithmetic on positions stay within 64 bits
_PROCEDURAL_FORM = "procedural://COUNT?seed=0&size=512"

PathLike = str | os.PathLike[str]


class ImageSource(Protocol):
    """Images by position; the position of an image is the same in every process."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> str:
        """Names the image at a position, for messages and records."""
        ...

    def read(self, index: int, target_size: int | None = None) -> NDArray[np.uint8]:
        """The image at a position as RGB uint8 HWC.

        Args:
            index: position of the image.
            target_size: the shorter side that the caller needs; a source may return any larger size.

        Raises:
            UnreadableImageError: the image cannot be read.
        """
        ...


class FileSource:
    """Image files of a listing, decoded anew at every read and never kept."""

    def __init__(self, listing: ImageListing) -> None:
        self.listing = listing

    def __len__(self) -> int:
        return len(self.listing)

    def path(self, index: int) -> str:
        """The file at a position."""
        return self.listing[index]

    def read(self, index: int, target_size: int | None = None) -> NDArray[np.uint8]:
        """The file at a position as `read_image` gives it."""
        return read_image(self.listing[index], target_size)


class ProceduralSource:
    """Scenes that depend on seed and position alone and need no files.

    Args:
        count: number of scenes.
        seed: seed of the set; two seeds share no scene.
        size: height and width of every scene.
    """

    def __init__(self, count: int, seed: int = 0, size: int = 512) -> None:
        for name, value, least in (("count", count, 1), ("seed", seed, 0), ("size", size, 1)):
            if value < least:
                raise ValueError(f"{name} of a procedural source must be at least {least}, got {value}")
        if count > MOST_SCENES or size * size > pixel_limit():
            raise ValueError(
                f"a procedural source has at most {MOST_SCENES} scenes of {pixel_limit()} pixels ({LIMIT}), got "
                f"{count} of {size}x{size}; lower count or size"
            )
        self.count = count
        self.seed = seed
        self.size = size

    def __len__(self) -> int:
        return self.count

    def path(self, index: int) -> str:
        """`procedural://SEED/INDEX`."""
        return f"{PROCEDURAL_SCHEME}{self.seed}/{self._position(index)}"

    def read(self, index: int, target_size: int | None = None) -> NDArray[np.uint8]:
        """The scene at a position, always at the size of the source."""
        from datamodules.images.procedural import draw_scene

        rng = sample_rng(self.seed, 0, self._position(index))
        return draw_scene(rng, (self.size, self.size))

    def _position(self, index: int) -> int:
        position = index + self.count if index < 0 else index
        if not 0 <= position < self.count:
            raise IndexError(f"index {index} is outside a procedural source of {self.count} scenes")
        return position


def open_images(spec: PathLike | Sequence[PathLike], *, cache_dir: PathLike | None = None) -> ImageSource:
    """Makes a source of files, folders and manifests, freely mixed, or of a procedural address.

    Neighbouring files and folders are listed together: sorted, each file once. Manifests keep their order.

    Args:
        spec: a path, a list of paths, or `procedural://COUNT?seed=7&size=256`.
        cache_dir: folder for caches of long listings; see `ImageListing.scan`.

    Raises:
        ValueError: the spec is empty or malformed, or mixes files with a procedural address.
        FileNotFoundError: a path is missing or holds no image.
    """
    parts = [os.fspath(part) for part in ([spec] if isinstance(spec, str | os.PathLike) else spec)]
    if not parts or "" in parts:
        raise ValueError(f"no images were named, got {spec!r}; name files, folders, manifests or {_PROCEDURAL_FORM}")
    addresses = [part for part in parts if "://" in part]
    if addresses and len(parts) > 1:
        raise ValueError(f"{addresses[0]!r} cannot be mixed with other paths; give it alone")
    if addresses:
        return _open_procedural(addresses[0])
    return FileSource(ImageListing.concatenate(list(_listings(parts, cache_dir))))


def _listings(parts: Sequence[str], cache_dir: PathLike | None) -> Iterator[ImageListing]:
    for are_manifests, group in groupby(parts, key=_is_manifest):
        if are_manifests:
            yield from (read_manifest(part, keep=())[0] for part in group)
        else:
            yield ImageListing.scan(list(group), cache_dir=cache_dir)


def _is_manifest(part: str) -> bool:
    return part.lower().endswith(MANIFEST_EXTENSIONS) and not Path(part).is_dir()


def _open_procedural(address: str) -> ProceduralSource:
    """Strict: a misspelt option must not silently give another set of scenes."""
    form = f"the form is {_PROCEDURAL_FORM}"
    parts = urlsplit(address)
    if parts.scheme != "procedural":
        raise ValueError(f"cannot open {address!r}: images are files, folders, manifests or {_PROCEDURAL_FORM}")
    options = parse_qsl(parts.query, keep_blank_values=True)
    names = [name for name, _ in options]
    if parts.path.strip("/") or parts.fragment or len(set(names)) < len(names) or set(names) - {"seed", "size"}:
        raise ValueError(f"cannot understand {address!r}: {form}")
    numbers = [("count", parts.netloc), *options]
    if not all(value.isascii() and value.isdigit() for _, value in numbers):
        raise ValueError(f"count, seed and size in {address!r} must be whole numbers of 0 or more: {form}")
    return ProceduralSource(**{name: int(value) for name, value in numbers})
