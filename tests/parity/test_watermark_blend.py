"""The blend modes and dilations against the reference's, case by case."""

import numpy as np
import pytest
import torch

from lightning_modules.functional.compositing import composite
from lightning_modules.functional.morphology import dilate_cross, dilate_square

METHOD = "watermark_segmentation"


def blend_cases(folder):
    return [key.removeprefix("out.") for key in folder.keys("blend.safetensors") if key.startswith("out.")]


def dilation_cases(folder):
    return [key for key in folder.keys("dilation.safetensors") if key != "mask"]


@pytest.mark.golden(METHOD, "blend", blend_cases)
def test_composite_equals_the_reference_blend(golden):
    arrays = golden.tensors("blend.safetensors")
    image, watermark = (torch.tensor(arrays[name][..., :3]) for name in ("image", "watermark"))
    alpha = torch.tensor(arrays["alpha"])
    # The reference treats names it does not know as normal; its engine maps them, our function refuses.
    mode = "normal" if golden.id == "unknown-mode" else golden.id
    result = composite(image, watermark, alpha, mode).numpy()
    expected = arrays[f"out.{golden.id}"]
    np.testing.assert_allclose(result, expected[..., :3], rtol=0, atol=1e-6)
    # The reference carries the backdrop's own alpha through; a picture's is 1 everywhere.
    np.testing.assert_array_equal(expected[..., 3], arrays["image"][..., 3])


@pytest.mark.golden(METHOD, "dilation", dilation_cases)
def test_dilation_is_exact(golden):
    arrays = golden.tensors("dilation.safetensors")
    family, _, size = golden.id.rpartition("_")
    dilate = {"cv2_square": dilate_square, "scipy_cross_iter": dilate_cross}[family]
    result = dilate(torch.tensor(arrays["mask"])[None, None], int(size))[0, 0].numpy()
    np.testing.assert_array_equal(result > 0, arrays[golden.id] > 0)
