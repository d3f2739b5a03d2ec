import os

import numpy as np
import pytest
from PIL import Image

from zoo.datasets import transforms
from zoo.datasets.transforms import Transform
from zoo.errors import UserError

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
MASK = (IMAGE[..., 0] > 128).astype(np.uint8)  # a mask that its image tells


def test_albumentations_does_not_ask_the_network():
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


@pytest.mark.parametrize("fit", ["crop", "resize"])
@pytest.mark.parametrize("augment", ["none", "flips", "default"])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_every_combination_gives_the_size_and_keeps_type_and_channels(fit, augment, channels, kind):
    image = RNG.random((40, 60, channels))
    image = (image * 255).astype(np.uint8) if kind is np.uint8 else image.astype(np.float32)
    out, mask = Transform((48, 32), fit, augment)(image, MASK, seed=1)
    assert (out.shape, out.dtype) == ((48, 32, channels), kind)
    assert mask.shape == (48, 32)
    assert set(np.unique(mask)) <= {0, 1, 255}


def test_no_fit_and_no_augmentation_change_nothing():
    image, mask = Transform()(IMAGE, MASK, seed=0)
    assert np.array_equal(image, IMAGE)
    assert np.array_equal(mask, MASK)


def test_equal_seeds_give_equal_samples_and_others_do_not():
    transform = Transform((32, 32), "crop", "default")
    first = [transform(IMAGE, MASK, seed) for seed in range(5)]
    again = [Transform((32, 32), "crop", "default")(IMAGE, MASK, seed) for seed in reversed(range(5))][::-1]
    for (image, mask), (other, other_mask) in zip(first, again, strict=True):
        assert np.array_equal(image, other)
        assert np.array_equal(mask, other_mask)
    assert not np.array_equal(first[0][0], first[1][0])


def test_both_flips_are_drawn_independently_and_move_image_and_mask_alike():
    seen = set()
    for seed in range(40):
        image, mask = Transform(None, augment="flips")(IMAGE, MASK, seed)
        assert np.array_equal(mask, image[..., 0] > 128)
        turned = {"": IMAGE, "h": IMAGE[:, ::-1], "v": IMAGE[::-1], "hv": IMAGE[::-1, ::-1]}
        seen |= {name for name, one in turned.items() if np.array_equal(one, image)}
    assert seen == {"", "h", "v", "hv"}


def test_crops_pad_small_images_with_zeros_and_the_ignored_class():
    white = np.full((8, 8, 3), 255, np.uint8)
    for ignore, kind in ((255, np.uint8), (-1, np.float32), (300, np.float32)):
        transform = Transform((64, 64), "crop", ignore_index=ignore)
        image, mask = transform(white, np.ones((8, 8), kind), seed=3)
        assert set(np.unique(mask)) == {1, ignore}
        assert np.array_equal(mask == 1, image[..., 0] == 255)


def test_crops_scale_from_half_to_double():
    stripe = np.zeros((400, 400, 3), np.uint8)
    stripe[:, 100:300] = 255
    sizes = [(Transform((900, 900), "crop")(stripe, stripe[..., 0], s)[1] == 0).any(0).sum() for s in range(30)]
    outer = [200 * 0.5, 200 * 2]  # of the black columns
    assert outer[0] - 2 <= min(sizes) < 150
    assert 300 < max(sizes) <= outer[1] + 2


def test_resize_is_pillows_bilinear_for_images_and_nearest_for_ids():
    image, mask = Transform((13, 17), "resize")(IMAGE, MASK, seed=0)
    assert np.array_equal(image, np.asarray(Image.fromarray(IMAGE).resize((17, 13), Image.Resampling.BILINEAR)))
    assert np.array_equal(mask, np.asarray(Image.fromarray(MASK).resize((17, 13), Image.Resampling.NEAREST)))


def test_soft_masks_are_smoothed_and_padded_with_background():
    soft = MASK * np.uint8(255)
    _, mask = Transform((13, 17), "resize", soft_masks=True)(IMAGE, soft, seed=0)
    assert len(np.unique(mask)) > 10
    _, padded = Transform((200, 200), "crop", "default", soft_masks=True)(IMAGE, np.full_like(soft, 255), seed=0)
    assert padded.min() == 0
    assert padded.dtype == np.uint8


def test_what_is_outside_0_1_keeps_its_values():
    scores = RNG.normal(0, 3, (40, 60, 3)).astype(np.float32)
    image, _ = Transform(None, augment="default")(scores, MASK, seed=1)
    assert image.min() < -5
    assert image.max() > 5


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_that_does_not_fill_its_range_keeps_its_contents(channels):
    twelve_bits = (RNG.integers(0, 4096, (40, 60, channels)) / 65535).astype(np.float32)
    flat = Transform(None, augment="default")
    for seed in range(40):
        image, mask = flat(twelve_bits, MASK, seed)
        inside = image[mask != 255]
        assert 0.6 * twelve_bits.mean() < inside.mean() < 1.5 * twelve_bits.mean()
        assert inside.std() > 0.4 * twelve_bits.std()  # turning smooths


def test_a_crop_never_scales_the_whole_image(monkeypatch):
    largest = []
    monkeypatch.setattr(
        transforms,
        "_resized",
        lambda *args, real=transforms._resized: largest.append(max(args[0].shape)) or real(*args),
    )
    photograph = np.zeros((3000, 4000, 3), np.uint8)
    for seed in range(20):
        image, mask = Transform((96, 64), "crop")(photograph, photograph[..., 0], seed)
        assert (image.shape, mask.shape) == ((96, 64, 3), (96, 64))
    assert max(largest) <= 2 * 96


def test_a_crops_image_and_mask_show_the_same_place():
    ramp = np.add.outer(np.arange(400) // 2, np.zeros(300)).astype(np.uint8)  # smooth: every filter agrees
    for seed in range(20):
        image, mask = Transform((50, 70), "crop", ignore_index=255)(ramp[..., None], ramp, seed)
        assert np.abs(image[..., 0].astype(int) - mask).max() <= 1


def test_crops_come_from_all_over_the_image():
    place = np.add.outer(np.arange(200), np.zeros(200)).astype(np.uint8)
    seen = [Transform((20, 20), "crop")(place[..., None], place, seed)[1] for seed in range(100)]
    assert min(one.min() for one in seen) < 10
    assert max(one.max() for one in seen) >= 190


def test_default_augmentation_changes_colours():
    assert any(
        not np.isclose(Transform(None, augment="default")(IMAGE, MASK, s)[0].mean(), IMAGE.mean(), rtol=0.02)
        for s in range(5)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "corp"}, "data.fit is 'corp' - did you mean 'crop'"),
        ({"augment": "flip"}, "did you mean 'flips'"),
        ({"size": [0, 5]}, "data.size"),
        ({"size": [5]}, "data.size"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Transform(**options)
