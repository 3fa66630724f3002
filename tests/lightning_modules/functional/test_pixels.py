import numpy as np
import torch

from lightning_modules.functional.pixels import to_picture, to_unit


def test_numbers_are_rounded_to_bytes():
    image = torch.tensor([0.0, 0.5 / 255 + 1e-4, 0.999, 1.2, -0.1]).expand(3, 1, 5)
    assert to_picture(image)[0, :, 0].tolist() == [0, 1, 255, 255, 0]


def test_bytes_come_back_from_unit_numbers_and_are_a_copy():
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = image.permute(1, 2, 0).numpy().copy()
    np.testing.assert_array_equal(to_picture(to_unit(image)), expected)
    picture = to_picture(image)
    np.testing.assert_array_equal(picture, expected)
    picture[:] = 0
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_only_bytes_are_scaled():
    truth = torch.tensor([True, False])
    assert to_unit(truth) is truth
    torch.testing.assert_close(to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([0.0, 0.2, 1.0]))
