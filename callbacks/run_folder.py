"""The folder of a run: `runs/<name>/version_N`, taken once and never shared."""

from pathlib import Path

from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.loggers import CSVLogger


class RunFolderLogger(CSVLogger):
    """CSV metrics in a folder that no other run has, even one that starts in the same moment.

    Lightning numbers versions by looking at what is there, so two runs can pick one number. Here the folder is
    taken by making it, which the file system lets only one of them do.

    Args:
        name: What the run is, for example the recipe; may contain slashes.
        save_dir: Where the runs are kept.
        flush_logs_every_n_steps: How often the metrics reach the disk.
    """

    def __init__(self, name: str, save_dir: str = "runs", flush_logs_every_n_steps: int = 50) -> None:
        super().__init__(save_dir, name=name, flush_logs_every_n_steps=flush_logs_every_n_steps)

    @property
    def version(self) -> int | str:
        """The number of this run; taken at first use, by rank zero alone (Lightning broadcasts its folder)."""
        if self._version is None:
            self._version = self._take_folder() if not _get_rank() else self._get_next_version()
        return self._version

    def _take_folder(self) -> int:
        version = self._get_next_version()
        while True:
            try:
                Path(self.root_dir, f"version_{version}").mkdir(parents=True)
            except FileExistsError:
                version += 1
            else:
                return version
