"""Training transforms; the only file that imports albumentations.

An eval split has none: metrics are taken at the original size.
"""

import os
import random
from collections.abc import Sequence

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else its import asks the network for a newer version

import albumentations as A
import cv2
import numpy as np
from PIL import Image

from zoo.errors import UserError, nearest

FITS = ("crop", "resize")
AUGMENTS = ("none", "flips", "default")


class Transform:
    """Fit to the size, then augment; all randomness comes from the seed of the call.

    size: (H, W), or None to keep each image's own. fit "resize": the whole image stretched, by Pillow's bilinear
    filter, which averages where it shrinks; ids by nearest, soft masks like the image. fit "crop": a random crop at a
    random scale from 0.5 to 2, zeros and `ignore_index` (a soft mask: 0) around what is too small. augment "flips":
    horizontal and vertical; "default": horizontal flip, rotation to 15 degrees, shift to 6 % and zoom to 10 % (what
    comes in from outside is 0 and `ignore_index`), contrast, brightness by a share of the image's mean and, for three
    channels of 8 bits, hue and saturation. Colours change only in images within [0, 1]: what a z-score gave is left as
    it is.
    """

    def __init__(
        self,
        size: Sequence[int] | None = None,
        fit: str = "resize",
        augment: str = "none",
        *,
        soft_masks: bool = False,
        ignore_index: int = 255,
    ):
        for key, value, choices in (("fit", fit, FITS), ("augment", augment, AUGMENTS)):
            if value not in choices:
                raise UserError(
                    f"data.{key} is {value!r}{nearest(value, choices) or '.'} Choose one of {', '.join(choices)}."
                )
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise UserError(f"data.size is {list(size)}; give [height, width] in pixels, each at least 1.")
        self.size = (size[0], size[1]) if size is not None else None
        self.fit, self.soft = fit, soft_masks
        self.geometry = A.Compose(_geometry(self.size if fit == "crop" else None, augment, soft_masks, ignore_index))
        self.grey, self.rgb = A.Compose(_light(augment)), A.Compose(_light(augment) + _hue(augment))

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """image (H, W, C), uint8 or float32; mask (H, W): ids (uint8 or float32) or soft (uint8)."""
        if self.size is not None:
            size = self.size
            if self.fit == "crop":
                rows, columns, size = _draw_window(mask.shape, size, np.random.default_rng(seed + 2))
                image, mask = image[rows, columns], mask[rows, columns]
            filters = Image.Resampling.BILINEAR, Image.Resampling.BILINEAR if self.soft else Image.Resampling.NEAREST
            image = np.stack([_resized(image[..., c], size, filters[0]) for c in range(image.shape[2])], axis=2)
            mask = _resized(mask, size, filters[1])
        if self.geometry.transforms:
            _reseed(self.geometry, seed)
            changed = self.geometry(image=image, mask=mask)
            image, mask = changed["image"], changed["mask"]
        colour = self.rgb if image.shape[2] == 3 and image.dtype == np.uint8 else self.grey
        if colour.transforms and (image.dtype == np.uint8 or (image.min() >= 0 and image.max() <= 1)):
            _reseed(colour, seed + 1)
            image = colour(image=image)["image"]
        return image, mask


def _draw_window(
    extents: tuple[int, ...], size: tuple[int, int], rng: np.random.Generator
) -> tuple[slice, slice, tuple[int, int]]:
    """(rows, columns) of an image to cut out, and the size to bring them to: `size`, less where the image ends.

    The same as to scale the whole image by 0.5 to 2 and crop, without ever making the whole larger.
    """
    factor = rng.uniform(0.5, 2)
    slices, scaled = [], []
    for extent, side in zip(extents, size, strict=True):
        length = min(extent, max(1, round(side / factor)))
        start = int(rng.integers(extent - length + 1))
        slices.append(slice(start, start + length))
        scaled.append(side if length < extent else min(side, max(1, round(extent * factor))))
    return slices[0], slices[1], (scaled[0], scaled[1])


def _reseed(steps: A.Compose, seed: int) -> None:
    """One generator for all steps: `set_random_seed` gives each a copy, so that all flips would flip together."""
    steps.set_random_state(np.random.default_rng(seed), random.Random(seed))


def _geometry(size: tuple[int, int] | None, augment: str, soft: bool, ignore_index: int) -> list[A.BasicTransform]:
    outside = dict(border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=0 if soft else ignore_index)
    steps: list[A.BasicTransform] = []
    if size is not None:
        steps.append(A.PadIfNeeded(*size, **outside))
    if augment != "none":
        steps.append(A.HorizontalFlip(p=0.5))
    if augment == "flips":
        steps.append(A.VerticalFlip(p=0.5))
    if augment == "default":
        move = dict(rotate=(-15, 15), translate_percent=(-0.06, 0.06), scale=(0.9, 1.1))
        warped = cv2.INTER_LINEAR if soft else cv2.INTER_NEAREST
        steps.append(A.Affine(**move, mask_interpolation=warped, **outside, p=0.7))
    return steps


def _light(augment: str) -> list[A.BasicTransform]:
    # by the image's mean: a fifth of the whole range would blacken 12 bits in a 16-bit file
    steps = [A.RandomBrightnessContrast(0.2, 0.2, brightness_by_max=False, p=0.7)]
    return steps if augment == "default" else []


def _hue(augment: str) -> list[A.BasicTransform]:
    return [A.HueSaturationValue(10, 20, 0, p=0.5)] if augment == "default" else []


def _resized(plane: np.ndarray, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    return np.array(Image.fromarray(plane).resize(size[::-1], resample))
