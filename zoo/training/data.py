"""A recipe's data: its card resolved, its splits, and what is read of each."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo.datasets.card import Card, load_card
from zoo.datasets.folder import FolderDataset
from zoo.datasets.folds import fold_pairs
from zoo.datasets.look import check_sizes, resolve
from zoo.datasets.splits import Pair, split_pairs
from zoo.datasets.transforms import Transform
from zoo.errors import UserError, nearest
from zoo.training.keys import Recipe
from zoo.training.loader import eval_loader
from zoo.training.unreadable import Readable

PASSES = 25  # over the few images of `overfit` in an epoch, so that it has steps enough

Names = Mapping[str, list[list[str]]]
"""split -> [name, image, mask] of each pair, files relative to the card's root: what a run keeps in splits.json"""


@dataclass(frozen=True)
class Splits:
    """The data of a recipe: its resolved card, and the pairs of each split, found once."""

    recipe: Recipe
    card: Card
    pairs: dict[str, list[Pair]]

    @property
    def images(self) -> dict[str, int]:
        """The number of images in each split."""
        return {split: len(pairs) for split, pairs in self.pairs.items()}

    @property
    def test_splits(self) -> list[str]:
        """Every split beside train and val; where there is none, val; nothing where there is but train."""
        names = [name for name in self.pairs if name not in ("train", "val")]
        return names or [name for name in self.pairs if name == "val"]

    def names(self) -> Names:
        """The splits as JSON."""
        root = self.card.root
        return {
            split: [[p.name, os.path.relpath(p.image, root), os.path.relpath(p.mask, root)] for p in pairs]
            for split, pairs in self.pairs.items()
        }

    def check_split(self, name: str) -> None:
        """Raise UserError where there is no such split, it is empty, or its images are gone."""
        if name not in self.pairs and name not in self.card.splits:
            raise UserError(
                f"The data {self.card.name!r} has no split {name!r}{nearest(name, self.pairs) or '.'}"
                f" It has: {', '.join(self.pairs)}."
            )
        if not self.pairs.get(name):
            raise UserError(
                f"The split {name!r} of the data card {self.card.name!r} in {self.card.root} is empty: there are too"
                " few images, or its folder or list is missing. Give a share by --data.card.splits"
                f" '{{seed: 0, {name}: 0.1}}'."
            )
        gone = [file for pair in self.pairs[name] for file in (pair.image, pair.mask) if not file.is_file()]
        if gone:
            raise UserError(
                f"{len(gone)} of the split {name!r}'s files are gone since the training: {gone[0]}"
                f"{', ...' if len(gone) > 1 else ''}; put them back, or take them out of the run's splits.json."
            )

    def training(self) -> FolderDataset:
        """The train split, fitted and varied; with `overfit` each image PASSES times in an epoch, always the same."""
        self.check_split("train")
        data, pairs = self.recipe.data, self.pairs["train"]
        fit, augment = data.fit, data.augment
        if self.recipe.overfit:
            fit, augment, pairs = "resize", "none", pairs * PASSES
        transform = Transform(data.size, fit, augment, soft_masks=data.soft_masks, ignore_index=self.card.ignore_index)
        return FolderDataset(self.card, pairs, transform, self.recipe.seed)

    def original(self, split: str) -> FolderDataset:
        """The split as it is stored: original sizes, nothing random; with `overfit` at the size of training."""
        self.check_split(split)
        same = Transform(self.recipe.data.size, "resize") if self.recipe.overfit else None
        return FolderDataset(self.card, self.pairs[split], same)

    def eval_loader(self, split: str) -> Any:
        data = self.recipe.data
        height, width = data.size or (512, 512)
        pixels = data.batch_size * height * width  # what fitted into a training step fits without gradients
        return eval_loader(
            Readable(self.original(split), replace=False),
            batch_size=data.batch_size,
            pixels=pixels,
            num_workers=data.num_workers,
            timeout=data.timeout,
        )


def fold_of(recipe: Recipe) -> str:
    """ "fold 2 of 5", or nothing where the card's own splits are used. Raises UserError for half of the two keys."""
    fold, folds = recipe.data.fold, recipe.data.folds
    if (fold is None) != (folds is None):
        given, lacking = ("fold", "folds") if folds is None else ("folds", "fold")
        raise UserError(
            f"data.{given} is {fold or folds}, but data.{lacking} is null; a cross-validation takes both, such as"
            " --data.fold 2 --data.folds 5."
        )
    return f"fold {fold} of {folds}" if fold else ""


def open_data(
    recipe: Recipe,
    *,
    channels: int | None = None,
    intensity: Mapping[str, Any] | None = None,
    names: Names | None = None,
) -> Splits:
    """The recipe's card, resolved: files found, class values known, images split.

    With `overfit` there are but the first of the train split's images, as train and as val split.
    channels, intensity: the model's; None = the card's. names: the splits as a run has kept them, so that files that
    came later belong to none; None = the card's.
    """
    card = load_card(recipe.data.card, recipe.data.root)
    card = replace(card, channels=channels) if channels else card
    card = card if intensity is None else replace(card, intensity=dict(intensity))
    card = resolve(card, skip=recipe.data.on_error == "skip")
    if names is None:
        pairs = split_pairs(card)
        if fold_of(recipe):
            pairs = fold_pairs(card, pairs, recipe.data.fold or 0, recipe.data.folds or 0)
        if recipe.overfit:
            few = pairs["train"][: recipe.overfit]
            pairs = {"train": few, "val": few}
        check_sizes(pair for some in pairs.values() for pair in some)
        return Splits(recipe, card, pairs)
    root = Path(card.root or ".")
    kept = {
        split: [Pair(name, root / image, root / mask) for name, image, mask in some] for split, some in names.items()
    }
    return Splits(recipe, card, kept)
