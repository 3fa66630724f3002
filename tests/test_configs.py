"""Every recipe parses, instantiates and runs for two batches; adding a YAML needs no edit here."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "env")
# Another one reads the same folders, or takes the same way through the code.
SLOW = {"copydays_long_800_eval", "copydays_short_288_eval", "sd15_prompts", "sd21_prompts", "sd15_forger"}
SLOW |= {"img2img", "inpaint", "joint_finetune", "verification"}
QUICKSTART = CONFIGS / "watermark_segmentation" / "quickstart.yaml"
OVERLAYS = sorted(CONFIGS.glob("env/*.yaml"))
# What stands in for data and networks that are not here or too large: by the method of the recipe.
SMALL = {
    "watermark_segmentation": (
        *("--model.encoder", "tu-mobilenetv3_small_050", "--model.encoder_depth", "5"),
        *("--model.decoder_channels", "[16,12,8,8,4]", "--model.weights", "null"),
    ),
    "sscd": ("--model.backbone", "resnet18", "--model.dims", "8", "--model.resize", "short_32"),
    "syncseal": (
        *("--model.size", "32", "--model.embedder_channels", "[8,16]", "--model.embedder_blocks", "1"),
        *("--model.detector_depths", "[1,1]", "--model.detector_dims", "[8,16]"),
    ),
    "masksim": ("--model.generators", "[shuffle,grid8]", "--model.img_size", "32", "--model.preprocess", "identity"),
}
# Recipes of a method whose models differ: by the model's class.
SMALL_MODELS = {
    "DenoiserModule": ("--model.depth", "3", "--model.width", "4"),
    "TinyDiffusionModule": ("--model.vae_steps", "1"),
    "PromptPriorModule": ("--model.backbone", "tiny", "--model.backbone_precision", "float32"),
    "ForgerModule": ("--model.backbone", "tiny", "--model.backbone_precision", "float32"),
    "JointFinetuneModule": ("--model.side", "32"),
    "DiffusionBaselineModule": ("--model.steps", "4", "--model.realise", "{size: 32}"),
    "PromptSamplingModule": ("--model.steps", "2", "--model.size", "32"),
    "WatermarkSegmentationModule": SMALL["watermark_segmentation"],
}
SPECTRA = (
    *("--data.root", "null", "--data.real", "procedural://4000?size=48", "--data.window", "32"),
    *("--data.generators", "{shuffle: 'toy://shuffle?count=4000&size=48', grid8: 'toy://grid8?count=4000&size=48'}"),
    *("--data.val_samples", "4", "--data.test_samples", "4", "--data.train_samples", "64", "--data.batch_size", "4"),
)
ONE_PROCESS = (
    *("--trainer.num_nodes", "1", "--trainer.strategy", "auto", "--trainer.sync_batchnorm", "false"),
    *("--trainer.precision", "32-true"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A working folder with small photos and logos where the recipes look for the user's."""
    import lightning  # noqa: F401

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEALMARK_CACHE", str(tmp_path / "cache"))
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            monkeypatch.setattr(handler, "stream", sys.stderr, raising=False)
    rng = np.random.default_rng(0)
    for name, channels, extension in (
        ("data/photos", 3, "jpg"),
        ("data/flickr8k/images", 3, "jpg"),
        ("data/logos", 4, "png"),
    ):
        (tmp_path / name).mkdir(parents=True)
        for number in range(24):
            pixels = rng.integers(0, 255, (40, 40, channels), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number:02d}.{extension}")
    for split in ("train", "test"):
        for kind, extension in (("Watermarked_image", "jpg"), ("Watermark_free_image", "jpg"), ("Mask", "png")):
            (tmp_path / "data/CLWD" / split / kind).mkdir(parents=True)
            for number in range(1, 25):
                pixels = rng.integers(0, 2, (32, 32), np.uint8) * 255
                Image.fromarray(pixels).save(tmp_path / "data/CLWD" / split / kind / f"{number}.{extension}")
    _write_disc(tmp_path / "data/disc", rng)
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if params.get("recipe", Path()).stem.startswith("copydays"):
        _write_copydays(tmp_path / "data", rng)
    if params.get("recipe", Path()).stem == "head_from_cache":
        _write_spectra(tmp_path / "data" / "spectra", params["recipe"])
    return tmp_path


def _write_disc(root: Path, rng: np.random.Generator) -> None:
    for folder, letter, count in (("val_query", "Q", 4), ("val_ref", "R", 6), ("training", "T", 12)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(
                root / folder / f"{letter}{number:05d}.jpg"
            )
    (root / "val_groundtruth_matches.csv").write_text(
        "query_id,reference_id\nQ00000,R000001\nQ00001,\nQ00002,R000003\n"
    )


def _write_copydays(data: Path, rng: np.random.Generator) -> None:
    from datamodules.copydays import BLOCKS

    Image.fromarray(rng.integers(0, 255, (8, 12, 3), np.uint8)).save(data / "one.jpg")
    for block, count in BLOCKS.items():
        (data / "copydays" / block).mkdir(parents=True)
        for number in range(count):
            name = f"{2000 + number % 157}{number // 157:02d}.jpg"
            (data / "copydays" / block / name).hardlink_to(data / "one.jpg")
    (data / "copydays_distractors").mkdir()
    (data / "copydays_distractors" / "0.jpg").hardlink_to(data / "one.jpg")


def _write_spectra(cache: Path, recipe: Path) -> None:
    """The cache that the recipe says to make first."""
    from experiments.cache_spectra import write_spectra

    init = {"generators": ["shuffle", "grid8"], "img_size": 32, "preprocess": "identity"}
    real, toys = "procedural://4000?size=48", {name: f"toy://{name}?count=4000&size=48" for name in init["generators"]}
    samples = {"val_samples": 4, "test_samples": 4, "num_workers": 0}
    content = {
        "model": {"class_path": "lightning_modules.masksim.module.MaskSimModule", "init_args": init},
        "data": {
            "class_path": "datamodules.compressed_spectra.CompressedSpectraDataModule",
            "init_args": {"real": real, "generators": toys, "window": 32, **samples},
        },
    }
    cache.parent.mkdir(exist_ok=True)
    (cache.parent / "cached.yaml").write_text(yaml.safe_dump(content))
    write_spectra(cache.parent / "cached.yaml", cache, train_pictures=12)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    from experiments.cli import main

    monkeypatch.setattr(sys, "argv", ["sealmark"])
    try:
        return main(words)
    except SystemExit as error:
        return int(error.code or 0)


def command_of(recipe: Path) -> str:
    known = {"predict": "predict", "calibrate": "validate", "evaluate": "test"}
    known |= dict.fromkeys(("edit", "img2img", "inpaint", "realise", "sample"), "predict")
    return "test" if recipe.stem.endswith("_eval") else known.get(recipe.stem, "fit")


def smallest(recipe: Path) -> list[str]:
    """Flags that make a recipe quick without replacing what it says of method and data."""
    text = yaml.safe_load(recipe.read_text())
    data = text["data"]["class_path"]
    words = ["--config", str(recipe), "--config", str(CONFIGS / "env" / "smoke.yaml")]
    words += SMALL_MODELS.get(text["model"]["class_path"].rpartition(".")[2], SMALL.get(recipe.parent.name, ()))
    words += ONE_PROCESS
    if "size" in text["data"].get("init_args", {}):
        words += ["--data.size", "32"]
    if data.endswith("WatermarkCompositingDataModule"):
        words += ["--data.val_samples", "4", "--data.test_samples", "4"]
    if data.endswith("DiscDataModule"):
        words += ["--data.photos", "procedural://4000?size=40", "--data.views.size", "32"]
        words += ["--data.references", "3", "--data.queries", "2", "--data.background", "1"]
        words += ["--data.eval_resize", "skew_32"]
    if data.startswith("datamodules.copy") and recipe.parent.name == "sscd":
        words += ["--data.resize", "skew_32", "--data.eval_batch_size", "64", "--trainer.limit_test_batches", "1.0"]
    if data.endswith("CopydaysDataModule"):
        # Whitening to 512 axes needs more background than that.
        words += ["--model.dims", "512", "--data.background", "procedural://520?size=32"]
    if data.endswith("CompressedSpectraDataModule"):
        words += SPECTRA
    if data.endswith("Sa1bDataModule"):
        words += ["--data.photos", "procedural://4000?size=40", "--data.val_samples", "4", "--data.test_samples", "4"]
    if data.endswith("SpectraCacheDataModule"):
        words += ["--data.cache", "data/spectra", "--data.batch_size", "4"]
    if data.endswith("SealDocumentsDataModule"):
        words += ["--data.val_samples", "4", "--data.test_samples", "4", "--data.num_workers", "0"]
    if recipe.stem == "calibrate":
        words += ["--data.calibration", "data/photos"]
    if recipe.stem == "predict":
        words += ["--data.paths", "data/photos"]
    return words


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(path, marks=pytest.mark.slow if path.stem in SLOW else ()) for path in RECIPES],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_recipe_runs_for_two_batches(recipe: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = command_of(recipe)
    words = smallest(recipe)
    if command != "fit" and recipe.stem not in ("edit", "img2img", "inpaint", "sample"):  # nothing of theirs is trained
        words += ["--model.weights", SMALL_WEIGHTS[recipe.parent.name](folder)]
    assert run(monkeypatch, command, *words) == 0
    version = next((folder / "runs").glob("**/version_0"))
    assert (version / "config.yaml").is_file()
    if command == "fit":
        assert "train/loss" in (version / "metrics.csv").read_text()


def small_watermark_weights(folder: Path) -> str:
    from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule
    from lightning_modules.weights import save_weights

    module = WatermarkSegmentationModule(encoder="tu-mobilenetv3_small_050", decoder_channels=[16, 12, 8, 8, 4])
    save_weights(module, folder / "small.safetensors", {})
    return str(folder / "small.safetensors")


def small_masksim_weights(folder: Path) -> str:
    from lightning_modules.masksim.module import MaskSimModule
    from lightning_modules.weights import save_weights

    module = MaskSimModule(generators=["shuffle", "grid8"], img_size=32, preprocess="identity", shared_trunk=False)
    save_weights(module, folder / "small.safetensors", {})
    return str(folder / "small.safetensors")


SMALL_WEIGHTS = {
    "watermark_segmentation": small_watermark_weights,
    "sscd": lambda folder: "random",
    "masksim": small_masksim_weights,
    "syncseal": lambda folder: "random",
    "seal2real": lambda folder: "random",
}


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_overlay_changes_only_what_it_names(
    overlay: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = printed(monkeypatch, capsys, "--config", str(QUICKSTART))
    changed = printed(monkeypatch, capsys, "--config", str(QUICKSTART), "--config", str(overlay))
    named = yaml.safe_load(overlay.read_text())
    for section, values in flat(changed).items():
        if values != flat(base).get(section):
            # A class that is named brings the defaults of its arguments.
            keys = [key.rstrip("+").removesuffix(".class_path") for key in flat(named)]
            assert any(section.startswith(key) for key in keys), section
    if "logger+" in named["trainer"]:
        classes = [logger["class_path"] for logger in changed["trainer"]["logger"]]
        assert classes[0] == "callbacks.run_folder.RunFolderLogger", "the run's folder comes from the first logger"
        assert len(classes) == 2


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    capsys.readouterr()
    assert run(monkeypatch, "fit", *words, "--print_config") == 0
    return yaml.safe_load(capsys.readouterr().out)


def flat(tree: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in flat(branch, f"{prefix}.{name}" if prefix else name).items()
    }


@pytest.mark.parametrize(("overlay", "written"), [("cpu", "metrics.csv"), ("tensorboard", "events.out.tfevents.*")])
def test_overlay_runs(overlay: str, written: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*smallest(QUICKSTART), "--config", str(CONFIGS / "env" / f"{overlay}.yaml")]
    assert run(monkeypatch, "fit", *words) == 0
    assert [path for path in (folder / "runs").rglob(written) if path.stat().st_size]


@pytest.mark.slow
def test_ddp_overlay_runs_on_two_cpu_processes(folder: Path) -> None:
    overlay = CONFIGS / "env" / "ddp.yaml"
    # The flags that the overlay itself names for this.
    told = overlay.read_text().split("add\n#")[1].splitlines()[0].split()
    command = [sys.executable, "-m", "experiments", "fit", *smallest(QUICKSTART), "--config", str(overlay), *told]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    assert "train/loss" in next((folder / "runs").rglob("metrics.csv")).read_text()


def test_offline_tracking_writes_without_an_account(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = [*smallest(QUICKSTART), "--config", str(CONFIGS / "env" / "offline.yaml")]
    assert run(monkeypatch, "fit", *words) == 0
    assert list((folder / "runs" / "wandb").glob("offline-run-*/*.wandb"))
