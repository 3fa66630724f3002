"""`sealmark prepare spectra`: its arguments; the work is in `experiments.cache_spectra`, which needs torch."""

from pathlib import Path


def spectra(
    recipe: Path,
    output: Path,
    ckpt_path: Path | None = None,
    views: int = 1,
    train_pictures: int | None = None,
    device: str = "cpu",
) -> None:
    """Write the log spectra of a recipe's pictures as float16, half a plane each, with an index.

    Train on them with `--data datamodules.spectra_cache.SpectraCacheDataModule --data.cache OUTPUT`. Training pictures
    are augmented as in training, frozen ones give the views that the recipe names. Unreadable files are left out.

    Args:
        recipe: YAML of a run, whose `data` names the pictures and whose `model` makes the spectra.
        output: Folder to make.
        ckpt_path: Checkpoint whose module makes the spectra in place of the recipe's `model`.
        views: Augmented views of each training picture.
        train_pictures: Training pictures of each set; None means all.
        device: Where spectra are made: cpu, cuda, cuda:1.
    """
    from experiments.cache_spectra import write_spectra

    write_spectra(recipe, output, ckpt_path, views, train_pictures, device)
