"""What the quickstart shows, without its training."""

import numpy as np
import torch

from experiments.syncseal.quickstart import MOVES, SIDE, TITLES, TOP, as_table, draw_panel
from lightning_modules.syncseal.module import SyncSealModule


def test_table_has_a_row_for_each_transform():
    results = {
        ("corner_error_px", ""): (3.0, 2.0, 4.0),
        ("unmarked_error_px", ""): (9.0, 8.0, 9.5),
        ("identity_error_px", ""): (12.0, 11.0, 13.0),
        ("within_3_px", ""): (0.6, 0.5, 0.7),
        ("error_to_identity", ""): (0.25, 0.2, 0.3),
        ("corner_error_px", "rotate_20"): (5.0, 4.0, 6.0),
        ("psnr_db", ""): (38.5, 38.0, 39.0),
    }
    lines = as_table(results).splitlines()
    cells = ("all", "3.000 (2.000 to 4.000)", "9.000 (8.000 to 9.500)", "12.000 (11.000 to 13.000)")
    assert lines[2] == f"| {' | '.join(cells)} | 0.600 (0.500 to 0.700) |"
    assert lines[3] == f"| rotate_20 | 5.000 (4.000 to 6.000){' | not measured' * 3} |"
    assert "Error to that of not moved: 0.250 (0.200 to 0.300)" in lines[5]
    assert "SSIM: not measured" in lines[7]


def test_panel_shows_originals_and_what_the_mark_changes():
    torch.manual_seed(0)
    networks = {"size": 32, "embedder_channels": (8, 16), "embedder_blocks": 1}
    module = SyncSealModule(**networks, detector_depths=(1, 1), detector_dims=(8, 16), scaling_w=0.0, disc_weight=0.0)
    images = torch.linspace(0, 1, len(MOVES))[:, None, None, None].expand(-1, 3, 48, 48)
    panel = draw_panel(module, images)
    cell = SIDE + 6
    assert panel.shape == (TOP + len(MOVES) * cell, len(TITLES) * cell, 3)
    for row in range(len(MOVES)):
        middle = panel[TOP + row * cell + cell // 2]
        grey = round(255 * row / (len(MOVES) - 1))
        for column in (0, 1):
            assert np.abs(middle[column * cell + cell // 2].astype(int) - grey).max() <= 1
        # Without strength there is no difference: grey.
        assert np.abs(middle[2 * cell + cell // 2].astype(int) - 128).max() <= 20
