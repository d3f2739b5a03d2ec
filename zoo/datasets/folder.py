"""The data set that a card describes: files on disk, read one pair at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.datasets.card import Card
from zoo.datasets.intensity import Intensity, stored_to_pixels, to_tensor
from zoo.datasets.masks import read_mask, read_soft_mask
from zoo.datasets.pixels import read_stored
from zoo.datasets.splits import Pair
from zoo.datasets.transforms import Transform
from zoo.errors import UserError


class FolderDataset(Dataset[dict[str, Any]]):
    """Images and masks: the pairs of one split of a resolved card.

    An item, by index or by (epoch, index): "image" float32 (C, H, W) in [0, 1] or what the card's intensity gives;
    "mask" int64 (H, W) class ids with `card.ignore_index`, or float32 (1, H, W) in [0, 1] where the transform asks for
    soft masks; "path" of the image. transform=None (evaluation): original size. What a transform draws depends on
    (seed, epoch, index) alone.
    Raises UserError when it reads files that are missing, unreadable, of different sizes or with unknown values.
    """

    def __init__(self, card: Card, pairs: Sequence[Pair], transform: Transform | None = None, seed: int = 0):
        self.card, self.pairs, self.transform, self.seed = card, pairs, transform, seed
        self.intensity = Intensity.of(self.card.intensity)
        if transform is not None and transform.soft and self.card.num_classes != 1:
            raise UserError(
                f"data.soft_masks is true, but the card {self.card.name!r} has {self.card.num_classes} classes;"
                " soft masks are for binary data."
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        pair = self.pairs[index]
        stored, turn = read_stored(pair.image)
        image = stored_to_pixels(stored, turn, self.intensity, self.card.channels, str(pair.image))
        soft = self.transform is not None and self.transform.soft
        read = read_soft_mask if soft else read_mask
        mask = read(pair.mask, self.card, stored.shape[:2], turn)
        if self.transform is not None:
            image, mask = self.transform(image, _transformable(mask, self.card), sample_seed(self.seed, epoch, index))
        return {"image": to_tensor(image), "mask": _to_target(mask, soft), "path": str(pair.image)}


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A number for one sample in one epoch, unlike its neighbours'."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])


def _transformable(mask: np.ndarray, card: Card) -> np.ndarray:
    """The mask in a type that every transform takes and that holds its ids, the ignored one too, exactly."""
    small = max(card.num_classes or 0, card.ignore_index) <= 255 and card.ignore_index >= 0
    return mask.astype(np.uint8 if small else np.float32)


def _to_target(mask: np.ndarray, soft: bool) -> Tensor:
    target = torch.from_numpy(np.ascontiguousarray(mask))
    return target.float().div_(255)[None] if soft else target.long()
