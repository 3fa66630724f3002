"""The quickstart's table and pictures, and that what it learns is in the labels."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.base import SampleKey
from datamodules.compressed_spectra import CompressedSpectraDataModule
from datamodules.transforms.spectrum_crops import CropSettings
from experiments.masksim import quickstart
from lightning_modules.masksim.module import MaskSimModule

SIDE = 64
NAME = "grid8"


def toy_data(**changes) -> CompressedSpectraDataModule:
    options = {
        "real": f"procedural://100000?size={SIDE}",
        "generators": {NAME: f"toy://{NAME}?size={SIDE}"},
        "window": SIDE,
        "crops": CropSettings(resize_probability=0, jpeg_quality=(65, 100), webp_probability=0),
        "train_samples": 320,
        "val_samples": 60,
        "test_samples": 100,
        "test_views": ["levelled"],
        "seed": 0,
    }
    return CompressedSpectraDataModule(**(options | changes))


def samples_of(data: CompressedSpectraDataModule, split: str) -> tuple[torch.Tensor, np.ndarray]:
    dataset = data.build_dataset(split)
    found = [dataset[SampleKey(0, index)] for index in range(len(dataset))]
    return torch.stack([sample["image"] for sample in found]), np.array([sample["label"] for sample in found])


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    positive, negative = scores[labels == 1], scores[labels == 0]
    return float((positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean())


def learnt_auroc(train, test, labels: np.ndarray) -> float:
    torch.manual_seed(0)
    module = MaskSimModule([NAME], SIDE, "identity", tied=True, relative_floor=0.05, loss="sealmark", lr=1e-2).train()
    module.log = lambda *_, **__: None
    optimizer = module.configure_optimizers()["optimizer"]
    order = np.random.default_rng(0)
    for _ in range(6):
        for part in np.array_split(order.permutation(len(labels)), 20):
            batch = {
                "image": train[part],
                "label": torch.from_numpy(labels[part]).float(),
                "generator": [NAME if label else "real" for label in labels[part]],
            }
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()
    module.eval()
    with torch.no_grad():
        scores = module.scorer()(test[0][:, 0].float() / 255)[:, 0].numpy()
    return auroc(scores, test[1])


@pytest.mark.slow
def test_traces_are_learnt_and_shuffled_labels_teach_nothing() -> None:
    data = toy_data()
    (train, labels), test = samples_of(data, "train"), samples_of(data, "test")
    assert learnt_auroc(train, test, labels) > 0.95
    chance = [learnt_auroc(train, test, np.random.default_rng(seed).permutation(labels)) for seed in range(3)]
    # 100 against 100: one AUROC at chance deviates by 0.041.
    assert np.mean(chance) == pytest.approx(0.5, abs=0.15)
    assert max(chance) < 0.8


def test_the_table_has_a_row_a_generator_and_says_what_was_not_measured(tmp_path) -> None:
    rows = ["metric,group,value,low,high,n", "auroc,one,0.9876,0.97,0.99,50", "auroc,one@levelled,0.9,0.8,0.95,50"]
    rows += ["fpr_at_nominal_5,any@levelled,0.04,0.02,0.07,50", "tpr_at_nominal_5,one,0.5,0.4,0.6,50"]
    (tmp_path / "results.csv").write_text("\n".join(rows) + "\n")
    table = quickstart.as_table(quickstart.read_results(tmp_path), ["one", "two"])
    assert "| one | 0.988 (0.970 to 0.990) | 0.900 (0.800 to 0.950) | 0.500 (0.400 to 0.600) |" in table
    assert "| two | not measured | not measured | not measured |" in table
    assert "native not measured, levelled 0.040 (0.020 to 0.070)" in table


def test_the_demo_has_all_origins_and_a_broken_file_and_its_picture_is_drawn(tmp_path) -> None:
    folder = quickstart.write_demo(toy_data(), tmp_path / "demo")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["0_real.png", f"1_{NAME}.jpg", "broken.jpg"]
    assert Image.open(folder / "0_real.png").size == (SIDE, 2 * SIDE)
    assert Image.open(folder / f"1_{NAME}.jpg").size == (2 * SIDE, SIDE)
    Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(tmp_path / "map.png")
    drawn = {"images": {"map": "map.png"}, "verdict": "unsure"}
    records = [{"path": str(folder / name)} | drawn for name in names[:2]]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "predictions.rank0.jsonl").write_text(lines)
    picture = quickstart.draw_picture(tmp_path, tmp_path / "out.png")
    assert Image.open(picture).size == (2 * (400 + quickstart.DEMO_SIDE + 20), 300)
