"""Several looks, by a detector that knows the answer up to an error of our choosing."""

import pytest
import torch

from lightning_modules.functional.geometry import frame_corners_px, normalise_corners, warp
from lightning_modules.syncseal.refinement import ORIENTATIONS, detect_quads, original_order, refine, reorient

SIZE = 64


def corners_found(image):
    """The four dots of a picture, by their colours: where each one is, (4, 2)."""
    places = []
    for red, green in ((1, 0), (0, 1), (1, 1), (0.5, 0)):
        weight = ((image[0] - red).abs() + (image[1] - green).abs() + (image[2] - 1).abs() < 0.3).float()
        row, column = weight.nonzero().float().mean(dim=0).tolist()
        places.append([column, row])
    return torch.tensor(places)


@pytest.fixture
def dots():
    """A picture with a dot of its own colour near each corner, and where they are."""
    image = torch.zeros(3, SIZE, SIZE)
    places = torch.tensor([[16, 16], [47, 16], [47, 47], [16, 47]])
    colours = torch.tensor([[1.0, 0, 1], [0, 1, 1], [1, 1, 1], [0.5, 0, 1]])
    for (x, y), colour in zip(places.tolist(), colours, strict=True):
        image[:, y - 2 : y + 3, x - 2 : x + 3] = colour[:, None, None]
    return image, places.float()


def homography_by_lstsq(source, target):
    rows, values = [], []
    for (x, y), (u, v) in zip(source.tolist(), target.tolist(), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    solved = torch.linalg.solve(torch.tensor(rows, dtype=torch.float64), torch.tensor(values, dtype=torch.float64))
    return torch.cat([solved, torch.ones(1)]).reshape(3, 3)


def true_quad(image, places):
    """Where the frame of a picture was, from where the dots went: an oracle that shares no code with the package."""
    homography = homography_by_lstsq(corners_found(image), places)
    height, width = image.shape[-2:]
    frame = torch.tensor([[0, 0, 1], [width - 1, 0, 1], [width - 1, height - 1, 1], [0, height - 1, 1.0]]).double()
    moved = frame @ homography.T
    return (moved[:, :2] / moved[:, 2:]).float()


class Oracle:
    """Answers truly, plus an error as a share of how far the corners have moved."""

    def __init__(self, places, share=0.0):
        self.places, self.share = places, share

    def __call__(self, images):
        quads = torch.stack([true_quad(image, self.places) for image in images])
        frame = frame_corners_px(SIZE, SIZE).float()
        answers = normalise_corners(frame + (1 - self.share) * (quads - frame), SIZE)
        return torch.cat([torch.zeros(len(images), 1), answers], dim=1)


@pytest.mark.parametrize(("turns", "mirrored"), ORIENTATIONS)
def test_reoriented_pictures_give_back_the_corners_of_the_picture(dots, turns, mirrored):
    image, places = dots
    seen = reorient(image[None], turns, mirrored)[0]
    quad = original_order(true_quad(seen, places), turns, mirrored)
    torch.testing.assert_close(quad, frame_corners_px(SIZE, SIZE).float(), rtol=0, atol=1e-3)


def test_eight_orientations_are_eight():
    image = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert len({tuple(reorient(image, *orientation).flatten().tolist()) for orientation in ORIENTATIONS}) == 8


def test_looking_again_shrinks_an_error_that_grows_with_the_move(dots):
    image, places = dots
    quad = torch.tensor([[[6.0, 3], [60, 8], [57, 62], [2, 55]]])
    attacked = warp(image[None], quad)
    errors = []
    for refinements in range(3):
        found = detect_quads(Oracle(places, share=0.3), attacked, SIZE, refinements)
        errors.append((found.quads_px - quad).norm(dim=-1).mean().item())
        assert found.spread.isnan().all() == (refinements == 0)
    assert errors[0] > 1.5
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.6 * errors[1]


def test_the_second_answer_is_taken_of_the_straightened_picture():
    first = torch.tensor([[[10.0, -5], [60, 9], [50, 62], [-3, 50]]])
    second = torch.tensor([[20.0, 4], [60, 2], [63, 40], [16, 44]])
    answer = torch.cat([torch.zeros(1), normalise_corners(second, SIZE)])[None]
    refined = refine(lambda images: answer, torch.rand(1, 3, SIZE, SIZE), first, SIZE)
    homography = homography_by_lstsq(frame_corners_px(SIZE, SIZE), second)
    moved = torch.cat([first[0].double(), torch.ones(4, 1)], dim=1) @ homography.T
    torch.testing.assert_close(refined[0], (moved[:, :2] / moved[:, 2:]).float(), rtol=0, atol=1e-3)


def test_a_quad_that_cannot_be_undone_stays_as_it_is(dots):
    image, places = dots
    bad = torch.tensor([[[0.0, 0], [0, 0], [0, 0], [0, 0]], [[float("nan")] * 2] * 4])
    kept = refine(Oracle(places, share=0.3), image[None].repeat(2, 1, 1, 1), bad, SIZE)
    torch.testing.assert_close(kept, bad, equal_nan=True)


def test_the_best_of_eight_is_the_one_that_the_detector_knows():
    # It knows upright pictures alone: elsewhere it answers at random, and with a smaller logit.
    image = torch.zeros(1, 3, SIZE, SIZE)
    image[:, 0, :8, :20] = 1
    frame = frame_corners_px(SIZE, SIZE).float()
    rng = torch.Generator().manual_seed(0)

    def detect(images):
        upright = (images - image).abs().flatten(1).sum(1) < 1e-3
        answer = torch.randn(len(images), 9, generator=rng)
        answer[upright] = torch.cat([torch.tensor([9.0]), normalise_corners(frame, SIZE)])
        return answer

    turned = reorient(image, 2, False)
    one = detect_quads(detect, turned, SIZE)
    best = detect_quads(detect, turned, SIZE, orientations=8)
    assert (one.quads_px[0] - frame.roll(-2, 0)).norm(dim=-1).mean() > 10
    torch.testing.assert_close(best.quads_px[0], frame.roll(-2, 0), rtol=0, atol=1e-3)
    assert best.presence.item() == 9
    assert best.spread.item() > 0.1


def test_without_a_presence_logit_the_answer_nearest_to_all_others_wins(dots):
    image, places = dots
    quad = torch.tensor([[[6.0, 3], [60, 8], [57, 62], [2, 55]]])
    oracle = Oracle(places)

    def detect(images):
        answers = oracle(images)
        answers[0] += torch.tensor([9.0] + [0.5] * 8)  # of the picture as it is
        return answers

    found = detect_quads(detect, warp(image[None], quad), SIZE, orientations=8, by_presence=False)
    assert (found.quads_px - quad).norm(dim=-1).mean() < 1.5
    assert found.presence.item() == 0


def test_other_numbers_of_orientations_are_refused(dots):
    with pytest.raises(ValueError, match="must be 1 or 8, got 4"):
        detect_quads(Oracle(dots[1]), dots[0][None], SIZE, orientations=4)
