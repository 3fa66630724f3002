"""Lists of images with columns: CSV with a header line, and JSON Lines."""

import csv
import json
import os
import reprlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, AnyStr

from datamodules.images.listing import ImageListing

MANIFEST_EXTENSIONS = (".csv", ".jsonl")
PATH_COLUMNS = ("path", "file")

# A hostile file must not decide how much memory reading it takes: a line is held whole, a column costs every row.
MOST_CHARACTERS = 1 << 20
MOST_COLUMNS = 1000

Row = tuple[int, Mapping[str, Any]]


def read_manifest(
    path: str | os.PathLike[str], keep: Collection[str] | None = None
) -> tuple[ImageListing, dict[str, list[Any]]]:
    """Reads the image paths and the other columns, row by row in the order of the file.

    The image is in the column `path`, else in `file`; relative ones start at the manifest's own folder. Values of
    CSV are strings, those of JSON Lines are what JSON says, with None where a line lacks a key.

    Args:
        path: a `.csv` or `.jsonl` file in UTF-8.
        keep: columns to return; all of them if None.

    Raises:
        FileNotFoundError: the manifest is missing or lists no image.
        ValueError: a line cannot be understood; the text names the file and the line.
    """
    manifest = Path(os.path.expanduser(path))  # not `Path.expanduser`, which fails for a user who is not known
    if not manifest.is_file():
        raise FileNotFoundError(f"no such manifest: {str(manifest)!r}; correct the path")
    rows = _csv_rows if manifest.suffix.lower() == ".csv" else _jsonl_rows
    columns: dict[str, list[Any]] = {}
    listing = ImageListing.from_paths(_collect(manifest, rows(manifest), columns, keep))
    if not listing:
        raise FileNotFoundError(f"manifest {str(manifest)!r} lists no images; add rows to it")
    return listing, columns


def _collect(
    manifest: Path, rows: Iterator[Row], columns: dict[str, list[Any]], keep: Collection[str] | None
) -> Iterator[str]:
    """Yields the paths and fills the columns on the way, so that rows are not held twice."""
    path_column = ""
    for count, (line, row) in enumerate(rows):
        path_column = path_column or _path_column(manifest, line, row)
        value = row.get(path_column)
        if not isinstance(value, str) or not value.strip():
            raise _fault(manifest, line, f"column {path_column!r} holds no path, got {_short(value)}; fill it in")
        for name in row:
            if name != path_column and name not in columns and (keep is None or name in keep):
                if len(columns) == MOST_COLUMNS:
                    raise _fault(manifest, line, f"more than {MOST_COLUMNS} columns so far; give rows the same keys")
                columns[name] = [None] * count
        for name, values in columns.items():
            values.append(row.get(name))
        joined = os.path.normpath(manifest.parent / value)
        try:
            os.fsencode(joined)
        except UnicodeEncodeError as error:  # half a character, which JSON can spell
            raise _fault(manifest, line, f"{_short(value)} can be no file's name; correct it") from error
        yield joined


def _path_column(manifest: Path, line: int, row: Mapping[str, Any]) -> str:
    for name in PATH_COLUMNS:
        if name in row:
            return name
    found = ", ".join(map(_short, list(row)[:10])) + ", …" * (len(row) > 10) or "none"
    raise _fault(manifest, line, f"no column 'path' or 'file', found {found}; rename the one with the images")


def _csv_rows(manifest: Path) -> Iterator[Row]:
    with manifest.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(_lines(manifest, file), strict=True)
        header: list[str] | None = None
        try:
            for fields in reader:
                if not fields:
                    continue
                if header is None:
                    header = [name.strip() for name in fields]
                    _check_header(manifest, reader.line_num, header)
                elif len(fields) == len(header):
                    yield reader.line_num, dict(zip(header, fields, strict=True))
                else:
                    counts = f"{len(fields)} fields under a header of {len(header)}"
                    raise _fault(manifest, reader.line_num, f"{counts}; quote fields that hold a comma")
        except csv.Error as error:
            raise _fault(manifest, reader.line_num, f"{error}; correct the quoting") from error
        except UnicodeDecodeError as error:
            raise _fault(manifest, reader.line_num + 1, "not UTF-8; save the file as UTF-8") from error


def _check_header(manifest: Path, line: int, header: list[str]) -> None:
    _path_column(manifest, line, dict.fromkeys(header))
    seen: set[str] = set()
    for name in header:
        if name in seen:
            raise _fault(manifest, line, f"column {_short(name)} appears twice; rename one")
        seen.add(name)


def _jsonl_rows(manifest: Path) -> Iterator[Row]:
    with manifest.open("rb") as file:
        for line, text in enumerate(_lines(manifest, file), start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise _fault(manifest, line, "not UTF-8; save the file as UTF-8") from error
            except json.JSONDecodeError as error:
                raise _fault(manifest, line, f"no JSON ({error.msg}); write one object a line") from error
            except RecursionError as error:
                raise _fault(manifest, line, "values nested too deeply; write one flat object a line") from error
            except ValueError as error:  # a number of thousands of digits
                raise _fault(manifest, line, f"no value that can be read ({error}); correct it") from error
            if not isinstance(row, dict):
                raise _fault(manifest, line, f"expected an object, got {type(row).__name__}; write one object a line")
            yield line, row


def _lines(manifest: Path, file: IO[AnyStr]) -> Iterator[AnyStr]:
    """The lines of a file, none of which may be so long that it fills the memory."""
    line = 0
    while text := file.readline(MOST_CHARACTERS + 1):
        line += 1
        if len(text) > MOST_CHARACTERS:
            raise _fault(manifest, line, f"longer than {MOST_CHARACTERS} characters; write one row a line")
        yield text


def _short(value: object) -> str:
    """Return a value as Python writes it, cut in its middle where it is long."""
    return reprlib.repr(value)


def _fault(manifest: Path, line: int, text: str) -> ValueError:
    return ValueError(f"manifest {str(manifest)!r}, line {line}: {text}")
