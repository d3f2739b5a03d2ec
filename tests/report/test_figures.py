import numpy as np
import pytest
from PIL import Image

from zoo.report.figures import (
    EXTRA,
    IGNORED,
    MISSED,
    RIGHT,
    WRONG,
    Sample,
    contact_sheet,
    errors,
    mean_iou,
    painted,
    painted_over,
    picture,
    samples,
)

COLORS = [(10, 20, 30), (200, 0, 0), (0, 200, 0)]


def sample(truth, prediction, **options):
    truth, prediction = np.array(truth), np.array(prediction)
    return Sample(np.full((*truth.shape[-2:], 3), 255, np.uint8), truth, prediction, **options)


def test_errors_of_one_class_tell_too_much_from_missed():
    shown = errors(sample([[0, 1, 1, 255]], [[1, 0, 1, 1]]), binary=True)
    assert [tuple(pixel) for pixel in shown[0]] == [EXTRA, MISSED, (255, 255, 255), IGNORED]


def test_errors_of_many_classes_are_one_colour_and_ignored_pixels_are_none():
    shown = errors(sample([[0, 1, 2, 255]], [[0, 2, 2, 1]]), binary=False)
    assert [tuple(pixel) for pixel in shown[0]] == [(255, 255, 255), WRONG, (255, 255, 255), IGNORED]


def test_errors_where_classes_overlap():
    shown = errors(sample([[[0, 1]], [[1, 1]]], [[[0, 1]], [[1, 0]]], ignore=None), binary=False)
    assert [tuple(pixel) for pixel in shown[0]] == [(255, 255, 255), WRONG]


def test_classes_are_painted_in_their_colours_and_background_stays_dark():
    names = ["background", "cat", "dog"]
    shown = painted(np.array([[0, 1, 2, 255]]), names, COLORS, 255)
    assert [tuple(pixel) for pixel in shown[0]] == [(24, 24, 24), COLORS[1], COLORS[2], IGNORED]
    assert tuple(painted(np.array([[0]]), ["sky", "cat", "dog"], COLORS, 255)[0, 0]) == COLORS[0]
    assert tuple(painted(np.array([[1]]), ["polyp"], COLORS[2:], 255)[0, 0]) == COLORS[2]


def test_overlapping_classes_are_painted_one_over_the_other():
    planes = np.array([[[1, 1, 0]], [[0, 1, 0]]], bool)
    shown = painted(planes, ["cat", "dog"], COLORS[1:], None)
    assert [tuple(pixel) for pixel in shown[0]] == [COLORS[1], COLORS[2], (24, 24, 24)]


def test_the_iou_of_a_sample_counts_what_is_there_or_predicted():
    assert mean_iou(sample([[1, 1, 0, 255]], [[1, 0, 0, 1]]), 1) == 0.5
    assert mean_iou(sample([[0, 0, 1, 1]], [[0, 0, 1, 0]]), 3) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert np.isnan(mean_iou(sample([[0, 0]], [[0, 0]]), 1))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_image_becomes_rgb_bytes(channels):
    image = np.random.default_rng(0).normal(0, 3, (4, 5, channels)).astype(np.float32)
    assert picture(image).shape == (4, 5, 3)
    assert picture(image).dtype == np.uint8
    assert tuple(picture(np.ones((1, 1, channels), np.float32))[0, 0]) == (255, 255, 255)


def test_the_figure_of_samples_takes_different_sizes(tmp_path):
    found = [
        sample(np.eye(60, 90, dtype=int), np.zeros((60, 90), int)),
        sample(np.eye(700, 40, dtype=int), np.eye(700, 40)),
    ]
    path = samples(found, ["thing"], COLORS[1:2], tmp_path / "samples.png")
    with Image.open(path) as image:
        assert image.width > 1000
        assert image.height > 400
    assert [p.name for p in tmp_path.iterdir()] == ["samples.png"]


def test_names_of_files_and_classes_are_plain_text_in_any_script(tmp_path, recwarn):
    one = sample(np.eye(8, dtype=int), np.eye(8, dtype=int), name="$a_{b}$ 猫 $\\frac.png")
    with Image.open(samples([one], ["price $ and $\\x$ 猫"], COLORS[:1], tmp_path / "samples.png")) as image:
        assert image.width > 1000
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_a_contact_sheet_shows_every_image_beside_its_mask_and_stripes_what_is_ignored(tmp_path):
    truth = np.array([[0, 1], [255, 255]]).repeat(24, 0).repeat(24, 1)
    found = (sample(truth, truth, name=f"train: {number}") for number in range(5))
    path = contact_sheet(found, ["background", "cat", "dog"], COLORS, tmp_path / "sheet.png")
    assert np.asarray(Image.open(path)).shape[1] == 1488
    over = painted_over(np.full((48, 48, 3), 255, np.uint8), truth, ["background", "cat", "dog"], COLORS, 255)
    assert {tuple(pixel) for pixel in over[24:].reshape(-1, 3).tolist()} == {IGNORED, RIGHT}
    assert tuple(over[0, 0]) == (255, 255, 255)
