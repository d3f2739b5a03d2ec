"""The demo's data: mosaics of five textures, cut from photographs in scikit-image's wheel.

Photographs (licences as scikit-image states them): brick, grass, gravel (CC0), immunohistochemistry (no known
restrictions), hubble_deep_field (NASA, public domain). Each is cut in three: the upper part for training, the lower
left corner for validation, the lower right for testing, so that no pixel serves twice.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from zoo.datasets.card import Card
from zoo.datasets.progress import tracked
from zoo.errors import UserError

SIZE = 160
COUNTS = {"train": 400, "val": 40, "test": 60}
PHOTOGRAPHS = ("brick", "grass", "gravel", "immunohistochemistry", "hubble_deep_field")  # in the order of class ids
SHRINK = {"hubble_deep_field": 0.6}  # of 872x1000 pixels: brings its galaxies closer together


def write_mosaics(folder: Path, card: Card, counts: dict[str, int] = COUNTS, seed: int = 0) -> None:
    """Write images/{split}/NAME.jpg and masks/{split}/NAME.png (palette of `card.colors`); equal for equal seeds.

    Raises UserError without scikit-image.
    """
    photographs = load_photographs()
    palette = np.array(card.colors, np.uint8).ravel().tolist()
    for number, (split, count) in enumerate(counts.items()):
        regions = [region(photograph, split) for photograph in photographs]
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for index in tracked(range(count), f"Drawing the demo's images ({split})"):
            image, mask = mosaic(regions, np.random.default_rng([seed, number, index]))
            Image.fromarray(image).save(folder / "images" / split / f"{index:03d}.jpg", quality=92)
            drawn = Image.fromarray(mask)
            drawn.putpalette(palette)
            drawn.save(folder / "masks" / split / f"{index:03d}.png")


def load_photographs() -> list[np.ndarray]:
    """The photographs in the order of class ids, uint8 (H, W, 3)."""
    try:
        from skimage import data
    except ImportError:
        raise UserError(
            "The demo's images come with scikit-image, which is not installed; pip install 'visionzoo[demo]'."
        ) from None
    images = []
    for name in PHOTOGRAPHS:
        image = Image.fromarray(getattr(data, name)()).convert("RGB")
        shrink = SHRINK.get(name, 1)
        images.append(np.array(image.resize((round(image.width * shrink), round(image.height * shrink)))))
    return images


def region(photograph: np.ndarray, split: str) -> np.ndarray:
    """The part of a photograph that a split may use: at least 192 x 192 of 512 x 512 pixels."""
    row, column = len(photograph) - 192, 192
    if split == "train":
        return photograph[:row]
    return photograph[row:, :column] if split == "val" else photograph[row:, column:]


def mosaic(regions: list[np.ndarray], rng: np.random.Generator, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """One mosaic (size, size, 3) uint8 with its class ids (size, size) uint8.

    Every piece is one cut from its texture, turned by quarters or mirrored, zoomed by 0.85 to 1.2, with its own
    brightness, contrast and tint, so that colour alone tells little; a soft light lies over the whole.
    """
    pieces = draw_pieces(rng, size)
    number = int(pieces.max()) + 1
    # every class once before any comes twice, so that all are equally frequent
    classes = np.concatenate([rng.permutation(len(regions)) for _ in range(-(-number // len(regions)))])[:number]
    image = np.zeros((size, size, 3), np.float32)
    for piece in range(number):
        inside = pieces == piece
        image[inside] = cut(regions[classes[piece]], rng, size)[inside]
    light = 1 + 0.25 * smooth_noise(rng, size, cells=2)[..., None]
    noisy = image * light + rng.normal(0, 3, image.shape)
    return noisy.round().clip(0, 255).astype(np.uint8), classes[pieces].astype(np.uint8)


def draw_pieces(rng: np.random.Generator, size: int) -> np.ndarray:
    """Numbers of 4 to 7 pieces (size, size): cells of Voronoi's diagram with bent edges."""
    number = int(rng.integers(4, 8))
    centres = np.array([rng.uniform(0, size, 2)])
    while len(centres) < number:  # each as far from the others as the best of eight: no slivers
        offers = rng.uniform(0, size, (8, 2))
        gaps = np.linalg.norm(offers[:, None] - centres[None], axis=2).min(1)
        centres = np.vstack([centres, offers[gaps.argmax()]])
    bend = size * 0.12
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    rows = rows + bend * smooth_noise(rng, size, cells=4)
    columns = columns + bend * smooth_noise(rng, size, cells=4)
    distances = (rows[None] - centres[:, 0, None, None]) ** 2 + (columns[None] - centres[:, 1, None, None]) ** 2
    pieces: np.ndarray = np.unique(distances.argmin(0), return_inverse=True)[1].reshape(size, size)
    return pieces


def cut(texture: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """A window of the texture brought to (size, size, 3) float32, under a light of its own."""
    side = min(round(size / rng.uniform(0.85, 1.2)), *texture.shape[:2])
    top, left = (int(rng.integers(0, extent - side + 1)) for extent in texture.shape[:2])
    window = np.rot90(texture[top : top + side, left : left + side], int(rng.integers(4)))
    window = window[:, ::-1] if rng.random() < 0.5 else window
    scaled = Image.fromarray(np.ascontiguousarray(window)).resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(scaled, np.float32)
    mean = pixels.mean()
    tint = rng.uniform(0.85, 1.15, 3).astype(np.float32)
    lit: np.ndarray = ((pixels - mean) * rng.uniform(0.8, 1.2) + mean * rng.uniform(0.8, 1.2)) * tint
    return lit


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """A smooth field (size, size) in [-1, 1] with about `cells` hills a side."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).clip(-1, 1)
