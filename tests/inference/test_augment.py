"""Test-time augmentation: turns and their way back, the average of raw outputs, planes turned with the image."""

import itertools

import numpy as np
import pytest
import torch

import zoo
from zoo.errors import UserError
from zoo.inference.augment import TURNS, augmented, turned, turned_back


@pytest.mark.parametrize("turn", TURNS["d4"])
def test_every_turn_finds_back(turn):
    x = torch.rand(2, 3, 4, 7)
    assert torch.equal(turned_back(turned(x, turn), turn), x)


def test_d4_is_all_eight_and_flips_the_four_that_keep_the_sides():
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    for tta, count in (("none", 1), ("flips", 4), ("d4", 8)):
        found = [turned(x, turn) for turn in TURNS[tta]]
        assert len(found) == count
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(found, 2))
    wide = torch.rand(1, 1, 3, 5)
    assert {tuple(turned(wide, turn).shape[2:]) for turn in TURNS["flips"]} == {(3, 5)}


def test_raw_outputs_are_averaged_and_planes_turn_with_the_image():
    conv = torch.nn.Conv2d(4, 2, 3, padding=1)

    def run(image, hole):
        return {"logits": conv(torch.cat([image, hole], 1)), "other": image}

    image, hole = torch.rand(2, 3, 5, 8), torch.rand(2, 1, 5, 8)
    with torch.no_grad():
        found = augmented(run, ["logits"], "d4", alone=True)(image, hole=hole)
        # turning the kernel is turning the image
        x, maps = torch.cat([image, hole], 1), []
        for turn in TURNS["d4"]:
            kernel = turned_back(conv.weight, turn)
            maps.append(torch.nn.functional.conv2d(x, kernel, conv.bias, padding=1))
    assert set(found) == {"logits"}
    torch.testing.assert_close(found["logits"], torch.stack(maps).mean(0))
    with pytest.raises(UserError, match="the answer also needs `other`"):
        augmented(run, ["logits"], "flips", alone=False)(image, hole=hole)


def test_a_mirrored_image_gets_the_mirrored_answer():
    torch.manual_seed(0)
    model = zoo.create_model("unet", encoder="resnet10t", num_classes=2).eval()
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    plain, averaged = model.predict(image), model.predict(image, tta="d4")
    assert np.abs(plain.probabilities - averaged.probabilities).max() > 1e-3
    for turn in TURNS["d4"]:
        again = model.predict(turned(torch.from_numpy(image).permute(2, 0, 1), turn), tta="d4")
        back = turned_back(torch.from_numpy(again.probabilities), turn).numpy()
        np.testing.assert_allclose(back, averaged.probabilities, atol=1e-4)


def test_unknown_names_and_prompts_are_told():
    model = zoo.create_model("unet", encoder="resnet10t")
    with pytest.raises(UserError, match="no tta 'flip' - did you mean 'flips'"):
        model.predict(np.zeros((8, 8, 3), np.uint8), tta="flip")
