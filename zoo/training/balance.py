"""Class weights from how often each class occurs."""

from collections.abc import Callable, Sequence
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


def class_weights(
    recipe: Recipe, data: Splits, task: Any, tell: Callable[[str], object] = print
) -> tuple[float, ...] | None:
    """The recipe's class weights, `balanced` by the masks of the train split; None where it has none.

    With `data.on_error: skip` masks that can't be read are left out, and `tell` is told how many.
    Raises UserError where they do not fit the task or its loss, and for a mask that can't be read.
    """
    weights = recipe.class_weights
    if weights is None:
        return None
    if not hasattr(task, "check_class_weights"):
        raise UserError(f"The task {task.name!r} has no class weights; take --class_weights null.")
    if isinstance(weights, str):
        pairs, skip = data.pairs["train"], recipe.data.on_error == "skip"
        histogram, unread = label_histogram(data.card, pairs, max(task.num_classes, 2), skip=skip)
        weights = balanced(histogram)
        if unread:
            are = "mask that can't be read is" if unread == 1 else "masks that can't be read are"
            tell(f"Note: {unread} {are} left out of the class weights.")
    task.check_class_weights(weights, recipe.loss)
    return weights


def label_histogram(card: Card, pairs: Sequence[Pair], classes: int, *, skip: bool = False) -> tuple[list[int], int]:
    """(the number of pixels of each class in the masks as they are stored, the number of masks left out by `skip`).

    Ignored pixels are of no class. Raises UserError for a mask that can't be read unless `skip` leaves it out.
    """

    def count(pair: Pair) -> np.ndarray | None:
        try:
            ids = read_mask(pair.mask, card)
        except UserError:
            if skip:
                return None
            raise
        return np.bincount(ids[(ids != card.ignore_index) & (ids < classes)], minlength=classes)

    with ThreadPoolExecutor(READERS) as pool:
        counted = [own for own in pool.map(count, pairs) if own is not None]
    total: np.ndarray = sum(counted, np.zeros(classes, np.int64))
    return [int(number) for number in total], len(pairs) - len(counted)


def balanced(histogram: Sequence[int]) -> tuple[float, ...]:
    """n / (K n_k) for a class of n_k pixels, of n pixels in all and K classes that occur: every class counts alike.

    A class without pixels has 1, which weighs nothing. Source: King and Zeng 2001, as scikit-learn's `balanced` has it.
    """
    occurring = sum(1 for number in histogram if number)
    total = sum(histogram)
    return tuple(total / (occurring * number) if number else 1.0 for number in histogram)
