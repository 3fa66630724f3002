import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from scipy import ndimage

from callbacks.figures import (
    CAPTION,
    GAP,
    IGNORED,
    MIN_SIDE,
    SegmentationFigures,
    heat_map,
    outline,
    panel,
    truth_picture,
)
from lightning_modules.functional.pixels import to_picture


def picture(height, width, value):
    return np.full((height, width, 3), value, np.uint8)


def test_panel_places_every_picture():
    big, wide = picture(130, 140, 10), picture(150, 200, 60)
    canvas = panel([[big, picture(130, 140, 20)], [wide, picture(150, 200, 70)]], ["left", "right"])
    assert canvas.shape == (CAPTION + 130 + GAP + 150 + GAP, 200 + GAP + 200, 3)
    assert (canvas[CAPTION : CAPTION + 130, :140] == 10).all()
    assert (canvas[CAPTION : CAPTION + 130, 140 : 200 + GAP] == 255).all()
    assert (canvas[CAPTION : CAPTION + 130, 200 + GAP : 340 + GAP] == 20).all()
    second = CAPTION + 130 + GAP
    assert (canvas[second - GAP : second] == 255).all()
    assert (canvas[second : second + 150, 200 + GAP :] == 70).all()
    for left in (0, 200 + GAP):
        assert (canvas[:CAPTION, left : left + 200] < 128).any(), "no caption"


def test_small_pictures_grow_by_a_whole_factor():
    small = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    canvas = panel([[small]], ["a caption that is much too long for so small a cell"])
    factor = MIN_SIDE // 16
    assert canvas.shape == (CAPTION + MIN_SIDE + GAP, MIN_SIDE, 3)
    np.testing.assert_array_equal(canvas[CAPTION:-GAP:factor, ::factor], small)
    assert (canvas[:CAPTION, -2:] == 255).all(), "the caption leaves its cell"


def test_panel_names_the_row_that_does_not_fit():
    with pytest.raises(ValueError, match="row 1 has 1 pictures for 2 titles"):
        panel([[picture(4, 4, 0)] * 2, [picture(4, 4, 0)]], ["a", "b"])


def test_truth_shows_the_ignore_band_in_grey():
    mask = np.array([[True, True, False, False]])
    ignore = np.array([[False, True, True, False]])
    assert truth_picture(mask, ignore)[0, :, 0].tolist() == [255, IGNORED, IGNORED, 0]


def test_heat_grows_brighter_with_the_value():
    row = heat_map(np.linspace(0, 1, 9, dtype=np.float32)[None])[0].astype(int).sum(1)
    assert (np.diff(row) > 0).all()
    red = heat_map(np.full((1, 1), 0.5, np.float32))[0, 0]
    assert red[0] > red[2], "channels are swapped"


def test_outline_paints_the_edge_alone():
    mask = np.random.default_rng(0).random((20, 20)) > 0.4
    painted = outline(picture(20, 20, 7), mask, (1, 2, 3))
    edge = mask & ~ndimage.binary_erosion(mask)
    assert (painted[edge] == (1, 2, 3)).all()
    assert (painted[~edge] == 7).all()


def test_a_file_for_each_stage_and_due_epoch(echo, tmp_path):
    callback = SegmentationFigures(num_samples=3, every_n_epochs=2)
    run = echo.trainer(tmp_path, [callback], max_epochs=4)
    module = echo.EchoModule()
    run.fit(module, echo.loader(), echo.loader())
    run.test(module, echo.loader(), verbose=False)
    folder = tmp_path / "version_0" / "figures"
    assert sorted(path.name for path in folder.iterdir()) == ["test_epoch4.png", "val_epoch1.png", "val_epoch3.png"]
    canvas = np.asarray(Image.open(folder / "val_epoch1.png"))
    factor = MIN_SIDE // echo.SIDE
    assert canvas.shape == (CAPTION + 3 * (MIN_SIDE + GAP), 4 * (MIN_SIDE + GAP) - GAP, 3)
    second = CAPTION + MIN_SIDE + GAP
    sample = echo.EchoData()[1]
    input_cell = canvas[second : second + MIN_SIDE : factor, :MIN_SIDE:factor]
    np.testing.assert_array_equal(input_cell, to_picture(sample["image"]))
    truth_cell = canvas[second : second + MIN_SIDE : factor, MIN_SIDE + GAP : 2 * MIN_SIDE + GAP : factor, 0]
    expected = np.where(sample["ignore"][0], IGNORED, 255 * sample["mask"][0].int())
    np.testing.assert_array_equal(truth_cell, expected)


def test_a_missing_output_is_named(echo, tmp_path):
    run = echo.trainer(tmp_path, [SegmentationFigures()])
    with pytest.raises(ValueError, match="SegmentationFigures needs 'image' from EchoModule"):
        run.test(echo.EchoModule(leave_out=("image",)), echo.loader(), verbose=False)


class FakeWandb(WandbLogger):
    def __init__(self, folder):
        self.folder, self.images = folder, {}

    save_dir = property(lambda self: str(self.folder))
    name = version = property(lambda self: "fake")
    log_metrics = log_hyperparams = log_graph = save = finalize = lambda self, *args, **kwargs: None

    def log_image(self, key, images):
        self.images[key] = images


def test_loggers_that_take_images_get_them(echo, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board, wandb = TensorBoardLogger(tmp_path, name="board"), FakeWandb(tmp_path)
    run = echo.trainer(tmp_path, [SegmentationFigures(num_samples=2)], logger=[board, wandb])
    run.test(echo.EchoModule(), echo.loader(), verbose=False)
    (path,) = (tmp_path / "board").rglob("figures/test_epoch0.png")
    saved = np.asarray(Image.open(path))
    np.testing.assert_array_equal(wandb.images["test/panel"][0], saved)
    events = accumulator.EventAccumulator(board.log_dir).Reload()
    (event,) = events.Images("test/panel")
    assert (event.height, event.width) == saved.shape[:2]


@pytest.mark.parametrize("options", [{"num_samples": 0}, {"every_n_epochs": 0}])
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match="must be at least 1, got"):
        SegmentationFigures(**options)
