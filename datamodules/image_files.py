"""Images of yours to predict on, and nothing else."""

from torch.utils.data import Dataset

from datamodules.base import ProvenanceDataModule, Sample
from datamodules.images.splits import Split


class ImageFilesDataModule(ProvenanceDataModule):
    """Files, folders and manifests of images of any sizes, for `predict` with any method."""

    def build_dataset(self, split: Split) -> Dataset[Sample]:
        """There are no splits: without truth nothing can be trained or scored."""
        raise ValueError(
            f"datamodules.image_files has no {split} split: use it with predict, or name another data.class_path"
        )
