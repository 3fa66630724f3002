"""Order, resumption and unreadable files, on a data set whose samples name themselves."""

import itertools
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image
from torch.utils.data import Dataset

from datamodules.base import ProvenanceDataModule, SampleKey, SplitSampler
from datamodules.image_files import ImageFilesDataModule
from datamodules.images.errors import UnreadableImageError
from datamodules.images.randomness import sample_rng


class Numbers(Dataset[dict[str, Any]]):
    """Samples that are draws of their key; some cannot be read."""

    def __init__(self, length: int, broken: tuple[int, ...] = ()) -> None:
        self.length = length
        self.broken = broken

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        if key.index in self.broken:
            raise UnreadableImageError(f"{key.index}.png", "truncated")
        draw = sample_rng(0, key.epoch, key.index).random()
        return {"image": torch.full((3, 2, 2), draw), "index": key.index, "path": f"{key.index}.png"}


class NumbersData(ProvenanceDataModule):
    def __init__(self, length: int = 23, broken: tuple[int, ...] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length = length
        self.broken = broken

    def build_dataset(self, split: str) -> Dataset[dict[str, Any]]:
        return Numbers(self.length, self.broken)


def sampler(length: int, rank: int = 0, world: int = 1, shuffle: bool = True, pad: bool = True) -> SplitSampler:
    return SplitSampler(range(length), seed=5, rank=rank, world_size=world, shuffle=shuffle, pad=pad)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_every_sample_and_padding_repeats_the_first_ones(world: int) -> None:
    dealt = [[key.index for key in sampler(10, rank, world)] for rank in range(world)]
    assert len({len(part) for part in dealt}) == 1
    merged = [index for turn in zip(*dealt, strict=True) for index in turn]
    assert merged[:10] == [key.index for key in sampler(10)]
    assert merged[10:] == merged[: len(merged) - 10]


def test_without_padding_every_sample_comes_once() -> None:
    dealt = [key.index for rank in range(3) for key in sampler(10, rank, 3, shuffle=False, pad=False)]
    assert sorted(dealt) == list(range(10))


def test_training_order_changes_with_the_epoch_and_evaluation_order_never_does() -> None:
    training, frozen = sampler(50), sampler(50, shuffle=False)
    first, fixed = list(training), list(frozen)
    training.set_epoch(1)
    frozen.set_epoch(1)
    assert [key.index for key in training] != [key.index for key in first]
    assert {key.epoch for key in training} == {1}
    assert list(frozen) == fixed
    assert fixed[0] == SampleKey(0, 0)


def loader(**kwargs: Any) -> Any:
    data = NumbersData(**{"batch_size": 4, "num_workers": 0, **kwargs})
    data.setup("fit")
    return data.train_dataloader()


def values(batches: Any) -> list[list[float]]:
    return [batch["image"][:, 0, 0, 0].tolist() for batch in batches]


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_loader_goes_on_where_its_state_was_taken(stop: int) -> None:
    whole = values(loader())
    first = loader()
    list(itertools.islice(iter(first), stop))
    second = loader()
    second.go_on_behind(first.handed_out)
    assert second.handed_out == stop, "a checkpoint before the next batch says the same"
    assert len(whole) == 5
    assert values(second) == (whole[stop:] if stop < 5 else whole)
    assert values(second) == whole, "the epoch after the resumed one is whole again"


class Remembers(LightningModule):
    """Keeps the indices it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch["index"].tolist())
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trained(folder: Path, epochs: int, checkpoint: Path | None = None) -> list[list[int]]:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "devices": 1}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=3,
        limit_val_batches=0,
        default_root_dir=folder,
        **quiet,
    )
    module = Remembers()
    trainer.fit(module, datamodule=NumbersData(batch_size=4, num_workers=0), ckpt_path=checkpoint)
    return module.seen


def test_epoch_that_was_limited_is_followed_by_a_whole_one(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", 2)
    first = trained(tmp_path, 1)
    (checkpoint,) = tmp_path.glob("checkpoints/epoch=0-step=3.ckpt")
    rest = trained(tmp_path, 2, checkpoint)
    assert len(whole) == 6
    assert first + rest == whole


def test_workers_heed_sigterm_from_their_parent_alone() -> None:
    batches = loader(num_workers=1, length=400)
    iterator = batches._get_iterator()
    (worker,) = iterator._workers
    next(iterator)
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert len(list(iterator)) == 99
    assert worker.is_alive()
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0


def test_workers_do_not_change_the_samples() -> None:
    assert values(loader()) == values(loader(num_workers=2))


def test_worker_seed_draws_leave_the_global_stream_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    next(iter(loader()))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_file_stops_with_its_name(num_workers: int) -> None:
    with pytest.raises(UnreadableImageError, match=r"^cannot read image '7.png': truncated[^\n]*$"):
        list(loader(broken=(7,), num_workers=num_workers))


def test_unreadable_files_are_left_out_and_listed() -> None:
    batches = list(loader(broken=(7, 8), on_unreadable="skip", length=24))
    listed = [entry for batch in batches for entry in batch["skipped"]]
    assert sorted(entry["index"] for entry in listed) == [7, 8]
    assert listed[0].keys() == {"path", "reason", "index"}
    kept = [index for batch in batches for index in batch["index"].tolist()]
    assert sorted(kept) == sorted(set(range(24)) - {7, 8})


def test_batch_without_any_readable_image_stops() -> None:
    with pytest.raises(UnreadableImageError, match="every image of its batch"):
        list(loader(broken=tuple(range(24)), on_unreadable="skip", length=24))


@pytest.mark.parametrize("workers", [0, 1])
def test_images_to_predict_arrive_at_their_own_sizes(tmp_path: Path, workers: int) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (height, 9, 3), dtype=np.uint8) for height in (4, 1, 7, 4, 5)]
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "2.png").write_bytes(b"broken")
    options = {"batch_size": 2, "num_workers": workers, "on_unreadable": "skip"}
    data = ImageFilesDataModule(paths=str(tmp_path), **options)
    data.setup("predict")
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.predict_dataloader()]
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [3], [4]]
    assert [len(batch["skipped"]) for batch in batches] == [0, 1, 0]
    for batch in batches:
        for index, image in zip(batch["index"].tolist(), batch["image"], strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), images[index])


def test_a_prediction_batch_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    data = ImageFilesDataModule(paths=str(tmp_path), num_workers=0, on_unreadable="skip")
    data.setup("predict")
    (batch,) = (data.on_after_batch_transfer(batch, 0) for batch in data.predict_dataloader())
    assert batch["image"] == []
    assert batch["index"].shape == (0,)


def test_pixels_become_unit_floats_and_nothing_else_changes() -> None:
    batch = {"image": torch.tensor([[0, 51, 255]], dtype=torch.uint8), "ignore": torch.tensor([True]), "path": ["a"]}
    result = NumbersData().on_after_batch_transfer(batch, 0)
    torch.testing.assert_close(result["image"], torch.tensor([[0.0, 0.2, 1.0]]))
    assert result["ignore"].dtype == torch.bool
    assert result["path"] == ["a"]


def test_too_few_samples_for_a_batch_say_so() -> None:
    with pytest.raises(ValueError, match=r"3 samples, fewer than one batch of 4.*lower --data.batch_size"):
        loader(length=3)


def test_predicting_without_paths_says_which_key_is_missing() -> None:
    with pytest.raises(ValueError, match=r"--data\.paths"):
        NumbersData().setup("predict")
