"""A folder of images and masks, sound or with one fault of every kind that a check finds."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 3


def picture(number: int, side: int = 64) -> np.ndarray:
    """(side, side, 3) uint8, smooth, unlike that of any other number."""
    coarse = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def ids(number: int, side: int = 64) -> np.ndarray:
    """(side, side) uint8: classes 0 to 2 as bands, and a rim of 255."""
    mask = ((np.arange(side) + 3 * number) * CLASSES // side % CLASSES).astype(np.uint8)[None].repeat(side, axis=0)
    mask[:2] = 255
    return mask


def plant_sound(root: Path, counts: dict[str, int], side: int = 64) -> Path:
    """images/{split}/NUMBER.jpg and masks/{split}/NUMBER.png; numbers go on from split to split."""
    number = 0
    for split, count in counts.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for _ in range(count):
            Image.fromarray(picture(number, side)).save(root / f"images/{split}/{number:02d}.jpg", quality=90)
            Image.fromarray(ids(number, side)).save(root / f"masks/{split}/{number:02d}.png")
            number += 1
    return root


def plant_faults(root: Path) -> Path:
    """20 pairs, 12 of train, 4 of val (12 to 15) and 4 of test (16 to 19), with nine faults in them."""
    plant_sound(root, {"train": 12, "val": 4, "test": 4})
    images, masks = root / "images/train", root / "masks/train"
    (images / "00.jpg").write_bytes((images / "00.jpg").read_bytes()[:900])  # truncated
    (masks / "01.png").unlink()
    Image.fromarray(ids(2, 32)).save(masks / "02.png")  # another size
    strange = ids(3)
    strange[20:30] = 77
    Image.fromarray(strange).save(masks / "03.png")
    (images / "04.jpg").write_bytes((root / "images/val/12.jpg").read_bytes())  # the same file
    brighter = (picture(16).astype(int) + 6).clip(0, 255).astype(np.uint8)
    Image.fromarray(brighter).save(images / "05.jpg", quality=60)  # nearly the same picture as test/16
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(masks / "06.png")  # nothing but void
    Image.fromarray(np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)[ids(7) % 3]).save(masks / "07.png")
    Image.fromarray(ids(99)).save(masks / "99.png")  # no image
    return root
