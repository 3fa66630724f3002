import numpy as np
import pytest
import torch

from lightning_modules.functional.color import rgb_to_ycbcr_studio

MATRIX = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
OFFSET = np.array([16.0, 128.0, 128.0])


def levels_by_numpy(rgb):
    return (rgb / 255.0) @ MATRIX.T + OFFSET


def converted(rgb, truncate):
    """Levels (N, 3) of colours (N, 3)."""
    image = torch.from_numpy(rgb.T.copy()).reshape(3, 1, -1)
    return (rgb_to_ycbcr_studio(image, truncate) * 255).reshape(3, -1).T.numpy()


@pytest.mark.parametrize("count", [1, 7, 100_000])
def test_truncated_colours_are_those_of_a_matrix_product_written_into_bytes(count):
    rgb = np.random.default_rng(count).integers(0, 256, (count, 3), np.uint8)
    expected = levels_by_numpy(rgb).astype(np.uint8)
    np.testing.assert_array_equal(converted(rgb, truncate=True).round(), expected)


def test_greys_lie_on_the_edge_where_rounding_decides():
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    chroma = converted(greys, truncate=True).round()[:, 1:]
    assert set(np.unique(chroma)) <= {127.0, 128.0}
    # Recorded with scikit-image; another order of the same sums gives 11 and 11.
    assert [(chroma[:, 0] == 127).sum(), (chroma[:, 1] == 127).sum()] == [2, 4]


def test_floats_on_levels_and_bytes_are_the_same_colours():
    levels = torch.randint(0, 256, (2, 3, 5, 9), dtype=torch.uint8)
    for truncate in (False, True):
        of_bytes = rgb_to_ycbcr_studio(levels, truncate)
        torch.testing.assert_close(rgb_to_ycbcr_studio(levels.float() / 255, truncate), of_bytes)
        assert of_bytes.dtype == torch.float32


def test_untruncated_colours_keep_precision_and_gradient():
    image = torch.rand(3, 4, 4, dtype=torch.float64, requires_grad=True)
    got = rgb_to_ycbcr_studio(image, truncate=False)
    expected = np.einsum("ij,jhw->ihw", MATRIX, image.detach().numpy()) + OFFSET[:, None, None]
    np.testing.assert_allclose(got.detach().numpy() * 255, expected, rtol=1e-13)
    got.sum().backward()
    torch.testing.assert_close(image.grad[:, 0, 0], torch.from_numpy(MATRIX.sum(axis=0) / 255))
