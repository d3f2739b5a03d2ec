"""What a person gives to `predict`: what is taken, and the sentences for what is not."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import zoo
from zoo.datasets.intensity import Intensity
from zoo.datasets.pixels import find_images
from zoo.errors import ImageError, UserError
from zoo.inference.program import Program
from zoo.inference.sources import pairs, read
from zoo.tasks import Segmentation

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return zoo.create_model("linear", encoder="mobilenetv3_small_050", num_classes=1)


def test_a_single_images_error_is_raised_though_errors_are_collected(model, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"xx")
    failed = []
    with pytest.raises(UserError, match=r"broken\.jpg is no image"):
        model.predict(tmp_path / "broken.jpg", failed=failed)
    with pytest.raises(UserError, match="no file"):
        model.predict("missing.jpg", failed=failed)
    assert list(model.predict([tmp_path / "broken.jpg"], failed=failed)) == []
    assert len(failed) == 1


def test_inputs_that_end_before_the_images_are_told():
    given = pairs(iter([PHOTO, PHOTO]), {"hole": iter([None])})
    with pytest.raises(UserError, match="`hole` ends after 1 of the images, and there are more"):
        list(given)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batchsize": 4}, "takes no input 'batchsize' - did you mean 'batch_size'"),
        ({"treshold": 0.3}, "did you mean 'threshold'"),
        ({"hole": PHOTO}, "takes no input 'hole'; it takes the image alone"),
    ],
)
def test_a_name_near_an_option_is_taken_for_it(model, options, sentence):
    with pytest.raises(UserError, match=sentence):
        model.predict(PHOTO, **options)


def test_what_a_program_was_opened_with_is_no_option_of_it():
    facts = {"config": {"intensity": None, "in_channels": 3}, "size": None}
    program = Program(facts, lambda inputs, names: {}, Segmentation(num_classes=1), torch.device("cpu"))
    with pytest.raises(UserError, match=r"zoo\.load_program\(path, device=...\)"):
        program.predict(PHOTO, device="cpu")
    with pytest.raises(UserError, match="computes in float32; leave `precision` out"):
        program.predict(PHOTO, precision="bf16")


def test_integers_without_a_known_range_are_refused(model):
    for image in (PHOTO.astype(np.int64), PHOTO.astype(np.uint32), torch.from_numpy(PHOTO).permute(2, 0, 1).int()):
        with pytest.raises(UserError, match=r"int.* up to 255, .* give uint8"):
            model.predict(image)
    ones = (PHOTO > 99).astype(np.int64)
    np.testing.assert_array_equal(model.predict(ones).mask, model.predict(ones.astype(np.float32)).mask)
    scaled = read(PHOTO.astype(np.int64), {}, Intensity(bits=8), 3, {}, 10**9)
    np.testing.assert_allclose(scaled.pixels, PHOTO / 255, atol=1e-6)
    deep = PHOTO.astype(np.uint16) * 257
    np.testing.assert_array_equal(
        read(deep.astype(">u2"), {}, Intensity(), 3, {}, 10**9).pixels, deep / np.float32(65535)
    )


def test_numbers_of_numpy_are_thresholds(model):
    np.testing.assert_array_equal(
        model.predict(PHOTO, threshold=np.float32(0.25)).mask, model.predict(PHOTO, threshold=0.25).mask
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("most", [10**9, 1000])
def test_values_that_are_no_numbers_are_told_with_the_file(tmp_path, value, most):
    values = PHOTO.astype(np.float32) / 255
    values[20, 20, 1] = value
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    with pytest.raises(ImageError, match=r"a\.tif holds NaN or infinite values"):
        read(tmp_path / "a.tif", {}, Intensity(), 3, {}, most).pixels[:]


def test_a_folder_named_as_an_image_is_none(model, tmp_path):
    (tmp_path / "x.png").mkdir()
    Image.fromarray(PHOTO).save(tmp_path / "x.png" / "y.png")
    assert [path.name for path in find_images(tmp_path)] == ["y.png"]
    assert len(list(model.predict(tmp_path))) == 1


def test_the_users_own_folder_may_be_a_tilde(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    Image.fromarray(PHOTO).save(tmp_path / "photos" / "a.png")
    whole = model.predict("~/photos/a.png")
    assert whole.path == tmp_path / "photos" / "a.png"
    for files in ("~/photos", ["~/photos/a.png"]):
        np.testing.assert_array_equal(next(iter(model.predict(files))).mask, whole.mask)


@pytest.mark.parametrize("files", [5, None, [5], [None]])
def test_what_is_no_image_is_told(model, files):
    with pytest.raises(UserError, match=r"is no image.* give a path, PIL image, array or tensor"):
        model.predict(files)
