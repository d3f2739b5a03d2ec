"""Cross-validation by card: the images that train and val have between them, parted into folds, groups kept whole."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from zoo.datasets.card import Card
from zoo.datasets.splits import Pair, group_of
from zoo.errors import UserError


def fold_pairs(card: Card, pairs: Mapping[str, list[Pair]], fold: int, folds: int) -> dict[str, list[Pair]]:
    """The splits with fold number `fold` of `folds` (from 1) as val and the others as train; further splits stay.

    Every image of train and val is in exactly one fold, and which one depends on the files, the card's groups and
    `splits.seed` alone: groups are laid, the largest first and else by hash, into the fold that holds fewest images.
    Raises UserError where there are fewer than two folds, no such fold, or fewer groups than folds.
    """
    if folds < 2:
        raise UserError(f"data.folds is {folds}; training on some and validating on another takes 2 or more.")
    if not 1 <= fold <= folds:
        raise UserError(f"data.fold is {fold}, but there are {folds} folds, counted from 1.")
    groups: dict[Any, list[Pair]] = defaultdict(list)
    for pair in (*pairs["train"], *pairs.get("val", [])):
        groups[group_of(card, pair.name) if card.group else pair.key].append(pair)
    if len(groups) < folds:
        what = f"groups (by the card's group {card.group!r})" if card.group else "images"
        raise UserError(
            f"data.folds is {folds}, but train and val of the data {card.name!r} hold {len(groups)} {what}; take fewer"
            " folds."
        )
    seed = card.splits.get("seed", 0)
    order = sorted(groups, key=lambda g: (-len(groups[g]), hashlib.sha256(f"{seed}/fold/{g}".encode()).digest()))
    parts: list[list[Pair]] = [[] for _ in range(folds)]
    for group in order:
        min(parts, key=len).extend(groups[group])
    held_out = parts.pop(fold - 1)
    train = [pair for part in parts for pair in part]
    chosen = {"train": sorted(train, key=_place), "val": sorted(held_out, key=_place)}
    return {**chosen, **{split: some for split, some in pairs.items() if split not in chosen}}


def _place(pair: Pair) -> tuple[str, str]:
    return pair.name, pair.folder
