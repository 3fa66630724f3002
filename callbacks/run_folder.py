"""The folder of a run: `runs/<name>/version_N`, taken once and never shared, or one with a name, taken up again."""

import csv
import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from callbacks.prediction_files import complete_size, cut_torn_line, write_all, write_whole

Row = dict[str, Any]


class MetricsFile(ExperimentWriter):
    """Appends rows to `metrics.csv` and goes on with one that is there.

    Lightning's deletes the file of an earlier start, and a kill while a new column is added empties it. Rows that a
    full disk does not take wait in memory.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.path = Path(self.metrics_file_path)
        self._header: list[str] = []
        self._told = False
        self._last_kept: set[tuple[int | None, frozenset[str]]] = set()
        if self.path.exists():
            cut_torn_line(self.path)
            self._header = list(_read_rows(self.path)[0])
            self.metrics_keys = list(self._header)

    def keep_until(self, step: int) -> None:
        """Drop the rows of steps after `step`: the run goes on from there and logs them again."""
        if not self.path.exists():
            return
        header, rows = _read_rows(self.path)
        kept = [row for row in rows if int(row["step"]) <= step]
        write_whole(self.path, _as_csv(header, kept, header_line=True))
        # A checkpoint written before a validation makes the run validate again.
        last = [{key for key, value in row.items() if value != ""} for row in kept if int(row["step"]) == step]
        self._last_kept = {(step, frozenset(keys - {"step"})) for keys in last}

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Record a row, unless it is one that was kept and is made again."""
        if (step, frozenset(metrics_dict)) not in self._last_kept:
            super().log_metrics(metrics_dict, step)

    def save(self) -> None:
        """Write the recorded rows; where there is no space, keep them for the next time and say so once."""
        if not self.metrics:
            return
        self._record_new_keys()
        try:
            self._write()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if not self._told:
                print(f"warning: no space left for {self.path}: its rows wait in memory", file=sys.stderr)
            self._told = True
        else:
            self.metrics, self._told = [], False

    def _write(self) -> None:
        if self.metrics_keys != self._header:
            old = _read_rows(self.path)[1] if self.path.exists() else []
            write_whole(self.path, _as_csv(self.metrics_keys, [*old, *self.metrics], header_line=True))
            self._header = list(self.metrics_keys)
            return
        size = complete_size(self.path)
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            write_all(file, _as_csv(self._header, self.metrics, header_line=False))
        except OSError:
            os.ftruncate(file, size)
            raise
        finally:
            os.close(file)

    def _check_log_dir_exists(self) -> None:
        """Leave what is there."""


class RunFolderLogger(CSVLogger):
    """CSV metrics in a folder that no other run has, even one that starts in the same moment.

    Lightning numbers versions by looking at what is there, so two runs can pick one number. Here the folder is
    taken by making it, which the file system lets only one of them do.

    Args:
        name: What the run is, for example the recipe; may contain slashes.
        save_dir: Where the runs are kept.
        flush_logs_every_n_steps: How often the metrics reach the disk.
        version: The folder's own name, for example job-4711: a run that is started again with the same one takes its
            folder up again. Without it every start takes a fresh `version_N`.
    """

    def __init__(
        self, name: str, save_dir: str = "runs", flush_logs_every_n_steps: int = 50, version: str | None = None
    ) -> None:
        if version is not None and (not version or "/" in version or version in (".", "..")):
            raise ValueError(f"`version` of RunFolderLogger must be a name without slashes, got {version!r}")
        super().__init__(save_dir, name=name, version=version, flush_logs_every_n_steps=flush_logs_every_n_steps)
        self.has_name = version is not None

    @property
    def version(self) -> int | str:
        """The number of this run; taken at first use, by rank zero alone (Lightning broadcasts its folder)."""
        if self._version is None:
            self._version = self._take_folder() if not _get_rank() else self._get_next_version()
        return self._version

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsFile:
        """What writes the metrics."""
        if self._experiment is None:
            self._experiment = MetricsFile(self.log_dir)
        assert isinstance(self._experiment, MetricsFile)
        return self._experiment

    def go_on_after(self, step: int) -> None:
        """Keep the rows up to `step` of an earlier start and drop the others."""
        self.experiment.keep_until(step)

    def _take_folder(self) -> int:
        version = self._get_next_version()
        while True:
            try:
                Path(self.root_dir, f"version_{version}").mkdir(parents=True)
            except FileExistsError:
                version += 1
            else:
                return version


def _read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Return the header and the rows that fit it; a power cut may leave zeros in place of some."""
    text = path.read_bytes().replace(b"\0", b"").decode("utf-8", errors="replace")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path} is damaged ({error}): move it away to go on") from error
    header = list(reader.fieldnames or [])
    return header, [row for row in rows if row.keys() == set(header) and str(row.get("step")).isdecimal()]


def _as_csv(header: list[str], rows: list[Row], *, header_line: bool) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, header)
    if header_line:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
