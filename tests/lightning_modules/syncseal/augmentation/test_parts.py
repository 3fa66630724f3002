import pytest
import torch

from lightning_modules.syncseal.augmentation import parts
from lightning_modules.syncseal.augmentation.parts import in_parts

FACTORS = torch.arange(1.0, 8.0)
IMAGES = torch.rand(7, 3, 8, 10, generator=torch.Generator().manual_seed(0))


def scaled(given, rows):
    return (given * FACTORS[rows.start : rows.stop, None, None, None]).square()


@pytest.fixture(autouse=True, params=[1, 2])
def threads(request, monkeypatch):
    """Two samples a part, one or two threads."""
    monkeypatch.setattr(parts, "CACHED_VALUES", 2 * IMAGES[0].numel() + 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def test_parts_together_are_the_batch_forwards_and_backwards():
    sizes = []

    def change(given, rows):
        sizes.append(len(rows))
        return scaled(given, rows)

    images = IMAGES.clone().requires_grad_()
    changed = in_parts(change, images)
    expected = scaled(IMAGES, range(7))
    torch.testing.assert_close(changed, expected)
    weights = torch.rand_like(images)
    (changed * weights).sum().backward()
    torch.testing.assert_close(images.grad, 2 * weights * IMAGES * FACTORS.square()[:, None, None, None])
    assert sorted(sizes) == [1, 2, 2, 2]


def test_the_gradient_goes_on_to_what_made_the_images():
    strength = torch.tensor(0.5, requires_grad=True)
    in_parts(scaled, IMAGES * strength).sum().backward()
    expected = (2 * 0.5 * (IMAGES * FACTORS[:, None, None, None]).square()).sum()
    torch.testing.assert_close(strength.grad, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_kept(mode):
    with mode():
        changed = in_parts(scaled, IMAGES.clone().requires_grad_())
        assert not changed.requires_grad
        assert changed.is_inference() == (mode is torch.inference_mode)
        torch.testing.assert_close(changed, scaled(IMAGES, range(7)))


def test_an_empty_batch_and_other_layouts():
    assert in_parts(scaled, IMAGES[:0]).shape == (0, 3, 8, 10)
    last = IMAGES.to(memory_format=torch.channels_last)
    seen = []

    def change(given, rows):
        seen.append(given.is_contiguous())
        return scaled(given, rows)

    changed = in_parts(change, last)
    assert all(seen)
    assert changed.is_contiguous()
    torch.testing.assert_close(changed, scaled(IMAGES, range(7)))
