"""Class weights from how often each class occurs."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from zoo.datasets.card import Card
from zoo.datasets.masks import read_mask
from zoo.datasets.splits import Pair
from zoo.errors import UserError
from zoo.training.data import Splits
from zoo.training.keys import Recipe

READERS = 4  # threads: decoding a mask leaves Python to the others


def class_weights(recipe: Recipe, data: Splits, task: Any) -> tuple[float, ...] | None:
    """The recipe's class weights, `balanced` by the masks of the train split; None where it has none.

    Raises UserError where they do not fit the task or its loss.
    """
    weights = recipe.class_weights
    if weights is None:
        return None
    if not hasattr(task, "check_class_weights"):
        raise UserError(f"The task {task.name!r} has no class weights; take --class_weights null.")
    if isinstance(weights, str):
        weights = balanced(label_histogram(data.card, data.pairs["train"], max(task.num_classes, 2)))
    task.check_class_weights(weights, recipe.loss)
    return weights


def label_histogram(card: Card, pairs: Sequence[Pair], classes: int) -> list[int]:
    """The number of pixels of each class in the masks as they are stored; ignored pixels are of none."""

    def count(pair: Pair) -> np.ndarray:
        ids = read_mask(pair.mask, card)
        return np.bincount(ids[(ids != card.ignore_index) & (ids < classes)], minlength=classes)

    with ThreadPoolExecutor(READERS) as pool:
        total: np.ndarray = sum(pool.map(count, pairs), np.zeros(classes, np.int64))
    return [int(number) for number in total]


def balanced(histogram: Sequence[int]) -> tuple[float, ...]:
    """n / (K n_k) for a class of n_k pixels, of n pixels in all and K classes that occur: every class counts alike.

    A class without pixels has 1, which weighs nothing. Source: King and Zeng 2001, as scikit-learn's `balanced` has it.
    """
    occurring = sum(1 for number in histogram if number)
    total = sum(histogram)
    return tuple(total / (occurring * number) if number else 1.0 for number in histogram)
