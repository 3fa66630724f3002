"""`python -m experiments.syncseal.quickstart`: learn a hidden pattern, find moved corners of unseen scenes, draw some.

Every step is a command of `sealmark`, printed before it runs, so that a newcomer can go on from any of them.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from experiments.steps import Results, log_dir, read_results, run_step, run_without_options, shown
from lightning_modules.functional.geometry import unwarp
from lightning_modules.functional.pixels import to_picture, to_unit
from lightning_modules.functional.sample_draws import SampleDraws
from lightning_modules.syncseal.augmentation.setups import named_attack
from lightning_modules.syncseal.module import SyncSealModule

CONFIG = Path("configs/syncseal/quickstart.yaml")
MOVES = ("rotate_inner_20", "crop_0.8", "hflip", "rotate_-10")
METRICS = ("corner_error_px", "unmarked_error_px", "identity_error_px", "within_3_px")
TITLES = ("original", "marked", "difference x 10", "attacked", "rectified")
SIDE, TOP = 192, 24


def main() -> int:
    """Run the steps and print where the table and the picture are."""
    started = time.monotonic()
    folder = log_dir(run_step("fit", "--config", str(CONFIG)))
    last = folder / "checkpoints" / "last.ckpt"
    tested = run_step("test", "--config", str(folder / "config.yaml"), "--ckpt_path", str(last))
    table = folder / "quickstart.md"
    table.write_text(as_table(read_results(log_dir(tested))), encoding="utf-8")
    assert isinstance(tested.model, SyncSealModule)
    data = tested.datamodule
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    picture = folder / "quickstart.png"
    Image.fromarray(draw_panel(tested.model, to_unit(batch["image"])[: len(MOVES)])).save(picture)
    print(f"\n{table.read_text()}\nunseen scenes; {time.monotonic() - started:.0f} s in all")
    print(f"picture: {picture}\ntable:   {table}")
    return 0


def as_table(results: Results) -> str:
    """Return a Markdown table: a transform a row, its error beside those without a mark and of no answer; quality."""
    titles = ("transform", "corner error, px", "the same without a mark", "always answering not moved", "within 3 px")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    names = ["", *(group for metric, group in results if metric == "corner_error_px" and group)]
    for name in names:
        cells = [shown(results.get((metric, name))) for metric in METRICS]
        lines.append(f"| {name or 'all'} | {' | '.join(cells)} |")
    lines.append("")
    for metric, said in (
        ("error_to_identity", "Error to that of not moved"),
        ("psnr_db", "PSNR, dB"),
        ("ssim", "SSIM"),
    ):
        lines.append(f"{said}: {shown(results.get((metric, '')))}. ")
    return "\n".join(lines) + "\n"


@torch.no_grad()
def draw_panel(module: SyncSealModule, images: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Return a picture: each image's row is the original, marked, their difference, attacked and rectified.

    Args:
        module: What marks and finds.
        images: One for each of the moves (4, 3, H, W) in [0, 1].
    """
    module.eval()
    marked = module.network.embed(images).marked
    rows = []
    for row, move in enumerate(MOVES):
        draws = SampleDraws.of_samples(0, 0, torch.tensor([row]))
        attacked = named_attack(marked[row : row + 1], move, draws).images
        straight = unwarp(attacked, module.detect(attacked).quads_px).images
        difference = 0.5 + 10 * (marked[row] - images[row])
        cells = (images[row], marked[row], difference, attacked[0], straight[0])
        rows.append(np.concatenate([_cell(cell) for cell in cells], axis=1))
    return np.concatenate([_titles(rows[0].shape[1]), *rows])


def _cell(image: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    shown_image = Image.fromarray(to_picture(image)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.pad(np.asarray(shown_image), ((3, 3), (3, 3), (0, 0)), constant_values=255)


def _titles(width: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    strip = Image.new("RGB", (width, TOP), "white")
    for column, title in enumerate(TITLES):
        place = (column * width // len(TITLES) + 6, 3)
        ImageDraw.Draw(strip).text(place, title, "black", ImageFont.load_default(15))
    return np.asarray(strip)


if __name__ == "__main__":
    sys.exit(run_without_options(main, __doc__))
