"""A small data set with its recipe: bright discs on noise, learned in seconds."""

import numpy as np
from PIL import Image

from zoo.training.recipe import load_recipe

RECIPE = """
task: segmentation
model: {encoder: resnet10t, decoder: {name: unet, widths: [16, 8, 8, 8, 4]}}
data: {card: folder, size: [64, 64], fit: resize, augment: flips, batch_size: 4, num_workers: 0}
optimizer: {name: adamw, lr: 3.0e-3}
trainer: {max_epochs: 2, accelerator: cpu, devices: 1}
"""


def write_discs(root, number, *, sizes=((64, 72), (80, 64)), classes=1, first=0):
    """Images with a bright disc on noise, and masks of 0 and 255, or of class ids; named from `first` on."""
    rng = np.random.default_rng(first)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(first, first + number):
        height, width = sizes[i % len(sizes)]
        y, x = np.mgrid[:height, :width]
        inside = (y - height / 2) ** 2 + (x - width * rng.uniform(0.3, 0.7)) ** 2 < rng.uniform(12, 20) ** 2
        kind = 1 + i % classes
        image = rng.normal(90, 15, (height, width, 3))
        image[inside] += np.roll([110, -50, -50], kind)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{i:02}.png")
        mask = (inside * (255 if classes == 1 else kind)).astype(np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{i:02}.png")
    return root


def recipe_of(folder, data, *overrides, text=RECIPE):
    path = folder / "discs.yaml"
    path.write_text(text)
    return load_recipe(path, ["--data.root", str(data), *overrides])


def truncate(path):
    path.write_bytes(path.read_bytes()[:200])
