"""What `Prediction.save` writes."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from zoo.prediction import Prediction


@pytest.mark.parametrize(
    ("classes", "endings"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["a b", "a_b", "c"], ["a_b_0", "a_b_1", "c"]),
        (["Cat", "cat", "cat_1"], ["Cat_0", "cat_1_1", "cat_1_2"]),
        (["overlay", "Overlay"], ["overlay_0", "Overlay_1"]),
        (["alpha", "b"], ["alpha_0", "b"]),
    ],
)
def test_each_overlapping_class_is_a_file_of_its_own_beside_all_others(tmp_path, classes, endings):
    masks = np.stack([np.full((5, 4), k % 2 == 0) for k in range(len(classes))])
    arrays = {"mask": masks, "alpha": np.zeros((1, 5, 4), np.float32)}
    written = Prediction(np.zeros((5, 4, 3), np.uint8), arrays, class_names=classes).save(tmp_path, name="x")
    assert [path.name for path in written] == [f"x_{end}.png" for end in (*endings, "overlay", "alpha")]
    assert len({path.name.casefold() for path in tmp_path.iterdir()}) == len(written)
    for path, mask in zip(written, masks, strict=False):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), mask)


def test_an_overlay_is_painted_in_bands_and_equal(monkeypatch):
    rng = np.random.default_rng(0)
    image, mask = rng.normal(size=(70, 41, 4)).astype(np.float32), rng.integers(0, 3, (70, 41))
    prediction = Prediction(image, {"mask": mask}, class_names=["background", "a", "b"], class_colors=[(9, 9, 9)] * 3)
    whole = np.asarray(prediction.overlay())
    monkeypatch.setattr("zoo.prediction.BAND", 100)
    np.testing.assert_array_equal(np.asarray(prediction.overlay()), whole)
    scaled = ((image - image.min()) / (image.max() - image.min()) * 255).round()[..., :3]
    assert np.abs(whole[mask == 0] - scaled[mask == 0]).max() <= 1


def test_an_overlay_takes_little_beside_its_own_pixels():
    prediction = Prediction(np.zeros((1500, 2000, 3), np.float32), {"mask": np.zeros((1500, 2000), np.uint8)})
    tracemalloc.start()
    prediction._painted(0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1500 * 2000 * 3 * 2.5  # the image as float32 is four times its bytes
