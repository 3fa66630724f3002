import io

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.procedural import draw_scene
from lightning_modules.functional.jpeg import jpeg, quantisation_tables


def scenes(count=3, size=(80, 100)):
    drawn = [draw_scene(np.random.default_rng(number), size) for number in range(count)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


def through_pillow(images, qualities):
    decoded = []
    for image, quality in zip(images, qualities, strict=True):
        file = io.BytesIO()
        picture = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(picture).save(file, "JPEG", quality=int(quality))
        decoded.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("quality", [1, 30, 49, 50, 80, 100])
def test_tables_are_libjpeg_s(quality):
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
    tables = Image.open(file).quantization
    ours = quantisation_tables(torch.tensor([quality]))[0].flatten(1)
    assert ours.tolist() == [list(tables[0]), list(tables[1])]


@pytest.mark.parametrize("threads", [1, 2])
def test_codec_works_in_inference_mode(threads):
    images, qualities = torch.rand(3, 3, 24, 40), torch.tensor([20, 50, 90])
    wanted, before = jpeg(images, qualities, "codec"), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():  # validation's; threads know nothing of it
            assert torch.equal(jpeg(images.clone(), qualities, "codec"), wanted)
    finally:
        torch.set_num_threads(before)


def test_codec_is_pillow_s():
    images, qualities = scenes(), torch.tensor([30, 55, 80])
    assert (jpeg(images, qualities, "codec") - through_pillow(images, qualities)).abs().max() < 1e-6


def test_transform_on_the_device_is_close_to_pillow_with_a_quality_each():
    images, qualities = scenes(), torch.tensor([30, 55, 80])
    error = (jpeg(images, qualities, "dct") - through_pillow(images, qualities)).abs() * 255
    lost = (images - through_pillow(images, qualities)).abs() * 255
    assert (error.mean((1, 2, 3)) < 0.3 * lost.mean((1, 2, 3))).all()
    assert error.mean() < 0.8


@pytest.mark.parametrize("engine", ["codec", "dct"])
def test_gradient_passes_where_the_value_is_inside(engine):
    images = scenes(1) * 1.4 - 0.2
    images.requires_grad_()
    weights = torch.linspace(0, 1, images.numel()).view_as(images)
    jpeg(images, torch.tensor([40]), engine).backward(weights)
    inside = (images > 0) & (images < 1)
    assert 0.2 < inside.float().mean() < 0.99
    assert torch.equal(images.grad, weights * inside)


@pytest.mark.parametrize("engine", ["codec", "dct"])
def test_a_sample_does_not_depend_on_its_neighbours(engine):
    images, qualities = scenes(), torch.tensor([30, 55, 80])
    together = jpeg(images, qualities, engine)
    alone = jpeg(images[1:2], qualities[1:2], engine)
    assert (alone[0] - together[1]).abs().max() < 1e-6
