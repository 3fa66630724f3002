"""The command's contract: quick answers, the YAML as the truth, runs that can be repeated."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from experiments.tracking import track_offline_without_account

ROOT = Path(__file__).parents[2]


def modules_after(*words: str) -> tuple[str, set[str]]:
    """Run the command in a fresh process; return what it printed and the modules it had imported."""
    program = (
        "import sys, json\nfrom experiments.cli import main\n"
        f"sys.argv[1:] = {list(words)!r}\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('\\nMODULES' + json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, check=True)
    told, modules = done.stdout.rsplit("\nMODULES", 1)
    return told, set(json.loads(modules))


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_short_answers_import_nothing_heavy(word: str) -> None:
    told, modules = modules_after(word)
    assert "sealmark" in told
    assert not modules & {"torch", "lightning", "numpy", "jsonargparse", "cv2", "PIL"}


def test_help_of_fit_imports_no_method() -> None:
    told, modules = modules_after("fit", "--help")
    assert "--config" in told
    assert "--trainer" in told
    methods = {name for name in modules if name.startswith("lightning_modules.")}
    shared = ("base", "weights", "torchscript", "functional", "functional.pixels", "functional.plain_json")
    shared += ("functional.plain_pickles", "functional.sample_draws")
    assert methods <= {f"lightning_modules.{name}" for name in shared}
    assert not modules & {"segmentation_models_pytorch", "timm"}


def test_help_of_prepare_imports_no_torch() -> None:
    told, modules = modules_after("prepare", "drawn", "--help")
    assert "--output" in told
    assert not modules & {"torch", "lightning"}


def test_unknown_command_lists_the_known_ones(sealmark: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert sealmark("trian", recipe=()) == 2
    assert "fit, validate, test, predict, export, prepare" in capsys.readouterr().err


def test_flags_win_over_what_a_checkpoint_stored(
    sealmark: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sealmark("fit", "--model.threshold", "0.25") == 0
    checkpoint = next(tmp_path.glob("runs/**/last.ckpt"))
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["threshold"] == 0.25
    assert sealmark("test", "--model.threshold", "0.75", "--ckpt_path", checkpoint) == 0
    results = json.loads(next(tmp_path.glob("runs/**/results.json")).read_text())
    assert results["provenance"]["settings"]["threshold"] == 0.75


def test_saved_config_repeats_the_run_and_serves_test(sealmark: Callable[..., int], tmp_path: Path) -> None:
    assert sealmark("fit") == 0
    first = next(tmp_path.glob("runs/**/version_0"))
    assert sealmark("fit", "--config", first / "config.yaml", recipe=()) == 0
    second = first.with_name("version_1")
    weights = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (first, second)
    ]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    words = ("--config", first / "config.yaml", "--ckpt_path", first / "checkpoints" / "last.ckpt")
    assert sealmark("test", *words, recipe=()) == 0
    assert {path.suffix for path in first.with_name("version_2").glob("results.*")} == {".csv", ".json", ".md", ".npz"}


def test_checkpoint_made_without_the_command_is_accepted(sealmark: Callable[..., int], tmp_path: Path) -> None:
    from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule

    module = WatermarkSegmentationModule(encoder="tu-mobilenetv3_small_050", decoder_channels=[16, 12, 8, 8, 4])
    plain = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": 0}
    torch.save(plain, tmp_path / "plain.ckpt")
    assert sealmark("test", "--ckpt_path", tmp_path / "plain.ckpt") == 0


def test_one_seed_decides_weights_and_training_data(
    sealmark: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from datamodules.image_files import ImageFilesDataModule

    assert sealmark("fit", "--seed_everything", "11", "--print_config") == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["seed_everything"] == 11
    assert config["data"]["init_args"]["seed"] is None, "it follows the run's"
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    data = ImageFilesDataModule()
    assert data.seed == 11
    assert ImageFilesDataModule(seed=3).seed == 3


def test_the_worked_example_follows_the_seed_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "worked_example"))
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    from jpeg_quality_example.data import RecompressedScenesDataModule

    assert RecompressedScenesDataModule().seed == 11


def test_prediction_resumes_where_it_stopped(sealmark: Callable[..., int], tmp_path: Path) -> None:
    from experiments.prepare import drawn

    drawn(tmp_path / "photos", count=5, size=48)
    words = ("--data.paths", tmp_path / "photos", "--predictions.output_dir", tmp_path / "out")
    words = (*words, "--trainer.limit_predict_batches", "1.0", "--model.weights", small_weights(tmp_path))
    assert sealmark("predict", *words) == 0
    lines = tmp_path / "out" / "predictions.rank0.jsonl"
    whole = lines.read_bytes()
    first_two = b"".join(whole.splitlines(keepends=True)[:2])
    lines.write_bytes(first_two + b'{"path": "torn')
    assert sealmark("predict", *words) == 0
    assert lines.read_bytes() == whole


def small_weights(folder: Path) -> Path:
    from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule
    from lightning_modules.weights import save_weights

    torch.manual_seed(0)
    module = WatermarkSegmentationModule(encoder="tu-mobilenetv3_small_050", decoder_channels=[16, 12, 8, 8, 4])
    save_weights(module, folder / "small.safetensors", {})
    return folder / "small.safetensors"


def test_the_hook_that_keeps_checkpoints_from_overriding_flags_exists() -> None:
    from lightning.pytorch.cli import LightningCLI

    assert callable(LightningCLI._parse_ckpt_path)


@pytest.mark.parametrize("what", ["scenes", "logos", "text"])
def test_prepare_draws_pictures_and_a_manifest(sealmark: Callable[..., int], tmp_path: Path, what: str) -> None:
    words = ("--output", tmp_path / what, "--count", "3", "--size", "40", "--what", what)
    assert sealmark("prepare", "drawn", *words, recipe=()) == 0
    (tmp_path / what / "broken.png").write_bytes(b"")
    manifest = tmp_path / "list.csv"
    assert sealmark("prepare", "manifest", "--images", tmp_path / what, "--output", manifest, recipe=()) == 0
    rows = manifest.read_text().splitlines()
    assert rows[0] == "path,width,height"
    assert len(rows) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_training_on_the_cpu_leaves_the_workers_their_cores(
    workers: int, sealmark: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule as Module

    during: list[int] = []
    step = Module.training_step

    def watched(self: Module, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        during.append(torch.get_num_threads())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Module, "training_step", watched)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    assert sealmark("fit", "--data.num_workers", workers) == 0
    assert set(during) == {max(1, len(os.sched_getaffinity(0)) - workers)}
    assert torch.get_num_threads() == before
    during.clear()
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    assert sealmark("fit", "--data.num_workers", workers) == 0
    assert set(during) == {before}, "what the user set stays"


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without anything of Weights & Biases, and nothing of it in the environment."""
    monkeypatch.setenv("WANDB_MODE", "")  # remembered, so that what the command sets is undone
    for name in [*(name for name in os.environ if name.startswith("WANDB_")), "NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_tracking_without_an_account_goes_offline_and_says_so(no_account: Path) -> None:
    configs = ("watermark_segmentation/quickstart", "env/smoke", "env/wandb")
    words = [word for name in configs for word in ("--config", str(ROOT / "configs" / f"{name}.yaml"))]
    # A process of its own: within one, W&B keeps the folder in which another test started it.
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "fit", *words],
        cwd=no_account,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    assert [line for line in done.stderr.splitlines() if "no W&B account" in line]
    assert list(no_account.glob("runs/wandb/offline-run-*/*.wandb"))


WANDB = Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=Namespace(offline=False))


@pytest.mark.parametrize("loggers", [WANDB, [True, WANDB]])
def test_any_wandb_logger_is_seen(loggers: object, no_account: Path) -> None:
    track_offline_without_account(loggers)
    assert os.environ["WANDB_MODE"] == "offline"


@pytest.mark.parametrize("loggers", [None, True, False, [], [Namespace(class_path="x.CSVLogger")]])
def test_other_loggers_leave_the_mode_alone(loggers: object, no_account: Path) -> None:
    track_offline_without_account(loggers)
    assert "WANDB_MODE" not in os.environ


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (".netrc", "machine api.wandb.ai login user password secret"),
        ("elsewhere", "machine api.wandb.ai login user password secret"),
        (".config/wandb/settings", "[default]\napi_key = secret\n"),
    ],
)
def test_an_account_is_used(file: str, text: str, no_account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = no_account / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if file == "elsewhere":
        monkeypatch.setenv("NETRC", str(path))
    track_offline_without_account([WANDB])
    assert "WANDB_MODE" not in os.environ


def test_an_account_of_another_host_is_none(no_account: Path) -> None:
    (no_account / ".netrc").write_text("machine api.wandb.ai login user password secret")
    (no_account / ".config" / "wandb").mkdir(parents=True)
    (no_account / ".config" / "wandb" / "settings").write_text("[default]\nbase_url = https://wandb.example.org\n")
    track_offline_without_account([WANDB])
    assert os.environ["WANDB_MODE"] == "offline"


@pytest.mark.parametrize("name", ["WANDB_MODE", "WANDB_API_KEY"])
def test_what_the_user_set_stays(name: str, no_account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "online")
    track_offline_without_account([WANDB])
    assert os.environ.get("WANDB_MODE") in (None, "online")
