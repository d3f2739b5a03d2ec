"""The data set that a card describes: files on disk, read one pair at a time."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.datasets.card import Card
from zoo.datasets.intensity import Intensity, stored_to_pixels, to_tensor
from zoo.datasets.look import resolve
from zoo.datasets.masks import read_mask, read_soft_mask
from zoo.datasets.pixels import read_stored
from zoo.datasets.splits import split_pairs
from zoo.datasets.transforms import Transform
from zoo.errors import UserError, nearest


class FolderDataset(Dataset[dict[str, Any]]):
    """Images and masks of one split of a card.

    An item, by index or by (epoch, index): "image" float32 (C, H, W) in [0, 1] or what the card's intensity gives;
    "mask" int64 (H, W) class ids with `card.ignore_index`, or float32 (1, H, W) in [0, 1] where the transform asks for
    soft masks; "path" of the image. transform=None (evaluation): original size. What a transform draws depends on
    (seed, epoch, index) alone. Pairs are checked at construction, their contents when read.
    Raises UserError for files that are missing, unreadable, unmatched, of different sizes or with unknown values.
    """

    def __init__(self, card: Card, split: str, transform: Transform | None = None, seed: int = 0):
        self.card = resolve(card)
        splits = split_pairs(self.card)
        if not splits.get(split):
            raise _no_split(self.card, split, splits.keys())
        self.pairs = splits[split]
        self.split, self.transform, self.seed = split, transform, seed
        self.intensity = intensity_of(self.card)
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


def intensity_of(card: Card) -> Intensity:
    """The card's `intensity` as the reader's. Raises UserError for an unknown key, with the nearest."""
    keys = Intensity.__dataclass_fields__
    for key in card.intensity:
        if key not in keys:
            raise UserError(
                f"intensity of the data card {card.name!r} has the unknown key {key!r}{nearest(key, keys) or '.'}"
                f" Keys are {', '.join(keys)}."
            )
    return Intensity(**card.intensity)


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


def _no_split(card: Card, split: str, there: Any) -> UserError:
    if split in card.splits:
        return UserError(
            f"The split {split!r} of the data card {card.name!r} in {card.root} is empty: there are too few images, or"
            f" its folder or list is missing. Give a share by --data.card.splits '{{seed: 0, {split}: 0.1}}'."
        )
    hint = nearest(split, there) or "."
    return UserError(f"The data card {card.name!r} has no split {split!r}{hint} It has {', '.join(there)}.")
