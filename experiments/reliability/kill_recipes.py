"""The small trainings that are killed: every method by its own recipe, shrunk by flags to seconds."""

from collections.abc import Sequence
from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"
SPECTRA = "spectra"  # the cache that `masksim_cache` learns from, in the working folder
TOYS = "{shuffle: 'toy://shuffle?count=4000&size=48', grid8: 'toy://grid8?count=4000&size=48'}"
# Validation in the middle of epochs of seven steps, and at the end of epochs.
BY_STEPS = ("--trainer.val_check_interval", "5", "--trainer.check_val_every_n_epoch", "null")
BY_EPOCHS = ("--trainer.val_check_interval", "1.0", "--trainer.check_val_every_n_epoch", "1")
SEALS = (
    *("--data.size", "32", "--data.val_samples", "4", "--data.test_samples", "4", "--data.batch_size", "2"),
    *("--data.eval_batch_size", "4", "--data.train_samples", "14", "--data.num_workers", "0"),
)
TINY = ("--model.backbone", "tiny")
PICTURES = (
    *("--data.real", "procedural://4000?size=48", "--data.generators", TOYS, "--data.window", "32"),
    *("--data.val_samples", "8", "--data.test_samples", "8", "--data.train_samples", "56", "--data.batch_size", "8"),
    *("--data.num_workers", "0"),
)
CACHED = {
    "model": {
        "class_path": "lightning_modules.masksim.module.MaskSimModule",
        "init_args": {"generators": ["shuffle", "grid8"], "img_size": 32, "preprocess": "identity"},
    },
    "data": {
        "class_path": "datamodules.compressed_spectra.CompressedSpectraDataModule",
        "init_args": {
            "real": "procedural://4000?size=48",
            "generators": {name: f"toy://{name}?count=4000&size=48" for name in ("shuffle", "grid8")},
            "window": 32,
            "val_samples": 4,
            "test_samples": 4,
            "num_workers": 0,
        },
    },
}
FORGER = (*TINY, "--model.channels", "[8,16]", "--model.eval_draws", "2", *SEALS, *BY_STEPS)

# There is nothing to test of a denoiser alone.
UNTESTED = ("masksim_denoiser",)
# By name: the configs' path, then flags. The name begins with the method's.
RECIPES: dict[str, tuple[str, ...]] = {
    "watermark_segmentation": (
        "watermark_segmentation/quickstart.yaml",
        *("--model.encoder", "tu-mobilenetv3_small_050", "--model.encoder_depth", "5"),
        *("--model.decoder_channels", "[16,12,8,8,4]", "--model.ema_decay", "0.5"),
        *("--data.photos", "procedural://1000?size=40", "--data.size", "32", "--data.num_workers", "2"),
        *("--data.val_samples", "6", "--data.test_samples", "6", "--data.train_samples", "28"),
        *("--data.batch_size", "4", "--data.eval_batch_size", "4", *BY_STEPS),
    ),
    "sscd": (
        "sscd/quickstart.yaml",
        *("--model.backbone", "resnet10t", "--model.dims", "8", "--model.resize", "skew_32"),
        *("--data.photos", "procedural://4000?size=40", "--data.test_photos", "procedural://200?seed=1&size=40"),
        *("--data.views", "{pipeline: advanced, size: 32, min_area: 0.3}", "--data.train_samples", "28"),
        *("--data.references", "6", "--data.queries", "6", "--data.background", "4", "--data.eval_resize", "skew_32"),
        *("--data.batch_size", "4", *BY_STEPS),
    ),
    "masksim_head": (
        "masksim/quickstart.yaml",
        *("--model.generators", "[shuffle,grid8]", "--model.img_size", "32", *PICTURES),
        *("--data.test_views", "[native,jpeg_75]", *BY_STEPS),
        # The recipe's own calibrates in `validate` alone.
        *("--trainer.callbacks+", "callbacks.detection_calibration.DetectionCalibration"),
        *("--trainer.callbacks.during_fit", "true"),
    ),
    "masksim_denoiser": (
        "masksim/denoiser.yaml",
        *("--model.depth", "3", "--model.width", "4", *PICTURES, *BY_EPOCHS),
    ),
    "masksim_cache": (
        "masksim/head_from_cache.yaml",
        *("--model.generators", "[shuffle,grid8]", "--model.img_size", "32", "--model.preprocess", "identity"),
        *("--data.cache", SPECTRA, "--data.batch_size", "4", "--data.num_workers", "0", *BY_EPOCHS),
    ),
    "syncseal": (
        "syncseal/quickstart.yaml",
        *("--model.size", "32", "--model.embedder_channels", "[8,16]", "--model.embedder_blocks", "1"),
        *("--model.detector_depths", "[1,1]", "--model.detector_dims", "[8,16]", "--model.ema_decay", "0.5"),
        *("--model.scaling_start_epoch", "0", "--model.scaling_epochs", "2", "--model.disc_weight", "0.1"),
        *("--model.disc_start", "1", "--model.finetune_detector_start", "4", "--model.presence_weight", "0.1"),
        *("--model.unmarked_share", "0.5", "--model.refinements", "1", "--model.transforms", "[identity,rotate_10]"),
        *("--data.photos", "procedural://1000?size=32", "--data.size", "32", "--data.train_samples", "28"),
        *("--data.val_samples", "4", "--data.test_samples", "4", "--data.batch_size", "4"),
        *("--trainer.callbacks+", "callbacks.sync_calibration.SynchronizationCalibration", *BY_EPOCHS),
    ),
    "seal2real_prompts": (
        "seal2real/prompts.yaml",
        *(*TINY, "--model.contrast_weight", "0.5", *SEALS, *BY_STEPS),
    ),
    "seal2real_forger_dds": ("seal2real/forger.yaml", *FORGER, "--model.prior.kind", "dds"),
    "seal2real_forger_vsd": ("seal2real/forger.yaml", *FORGER, "--model.prior.kind", "vsd"),
    "seal2real_joint": (
        "seal2real/joint_finetune.yaml",
        *(*TINY, "--model.side", "32", *SEALS, *BY_EPOCHS),
    ),
}


def words_of(name: str, steps: int) -> list[str]:
    """Return the words behind `fit` or `test` of a recipe, with a checkpoint after every step."""
    config, *flags = RECIPES[name]
    return [
        *("--config", str(CONFIGS / config), "--trainer.accelerator", "cpu", *flags),
        *("--trainer.max_steps", str(steps), "--trainer.max_epochs", "-1", "--trainer.log_every_n_steps", "1"),
        *("--trainer.num_sanity_val_steps", "0", "--trainer.enable_model_summary", "false"),
        *("--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint"),
        *("--trainer.callbacks.every_n_train_steps", "1", "--trainer.callbacks.filename", "every{step}"),
        *("--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks+"),
        "experiments.reliability.moments.TellMoments",
    ]


def recipes_of(method: str) -> Sequence[str]:
    """Return the names of a method's recipes, or the recipe of that name."""
    names = [name for name in RECIPES if method in (name, "all") or name.startswith(f"{method}_")]
    if not names:
        raise ValueError(f"no recipe is named '{method}': use all, a method, or one of {', '.join(RECIPES)}")
    return names
