"""Images that can't be read: a training takes others in their place, an evaluation leaves them out; both are told.

Nothing is raised where a sample is read, which may be a worker of one process of several: what was wrong comes with the
batch, and `guards.py` decides for all processes at once.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from zoo.datasets.folder import FolderDataset
from zoo.errors import UserError
from zoo.training.keys import Data

TRIES = 20  # other samples, before all of the data counts as unreadable


class Readable(Dataset[dict[str, Any]]):
    """The samples of `dataset`, with "unread" (the image's path, "" where it could be read) and "why" (a sentence).

    replace=True (training): in place of an unreadable sample stands another of the same epoch, drawn from (seed, epoch,
    index) alone, so that batches keep their size and a resumed training meets the same. Else (evaluation) it is
    "unread" and "why" alone. Raises UserError where TRIES others can't be read either.
    """

    def __init__(self, dataset: FolderDataset, *, replace: bool):
        self.dataset, self.replace = dataset, replace

    def __len__(self) -> int:
        return len(self.dataset)

    def path(self, index: int) -> str:
        """The image's path."""
        return str(self.dataset.pairs[index].image)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        try:
            return {**self.dataset[key], "unread": "", "why": ""}
        except UserError as error:
            card = self.dataset.card
            found = {"unread": self.path(index), "why": f"{error} It is data of the card {card.name!r} in {card.root}."}
        if not self.replace:
            return found
        for other in self._others(epoch, index):
            try:
                return {**self.dataset[epoch, other], **found}
            except UserError:
                continue
        raise UserError(f"{found['why']} Nor can {TRIES} others be read: `zoo data check` finds what is wrong.")

    def _others(self, epoch: int, index: int) -> Iterator[int]:
        if len(self) > 1:
            rng = np.random.default_rng([self.dataset.seed, epoch, index])
            for step in rng.integers(1, len(self), TRIES):
                yield (index + int(step)) % len(self)


def found_in(batch: Mapping[str, Any]) -> dict[str, str]:
    """Path -> sentence of the unreadable images that a batch knows of."""
    return {path: why for path, why in zip(batch.get("unread", ()), batch.get("why", ()), strict=True) if why}


def too_many(found: Mapping[str, str], images: int, options: Data) -> str | None:
    """The sentence that ends a training or a measurement on `images` images, None where it may go on."""
    if not found:
        return None
    last = list(found.values())[-1]
    if options.on_error == "raise":
        return f"{last} `zoo data check` finds all of them; --data.on_error skip goes on without."
    most = options.max_errors
    if len(found) <= (max(1, math.floor(most * images)) if most < 1 else most):
        return None
    return (
        f"{len(found)} of {images} images can't be read, more than data.max_errors ({most:g}) lets pass; the last:"
        f" {last} `zoo data check` finds all of them."
    )


def told(found: Mapping[str, str], split: str) -> str:
    """What was skipped, in a sentence."""
    names = [Path(path).name for path in found]
    some = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
    what = "replaced by others" if split == "train" else "left out of the metrics"
    one = len(names) == 1
    return f"{len(names)} image{'s' * (not one)} of {split} can't be read and {'is' if one else 'are'} {what}: {some}."
