"""What a test leaves image by image, beside test.json: test_images.csv, test_details.json and the worst images.

test_images.csv: a row for each image with its figures and the pixels counted of each class, which intervals and
comparisons are computed from. test_details.json: {split: mode, classes, confusion [truth][prediction], calibration}.
worst_<split>.png: the images with the lowest scores, found again and predicted once more, so that a test keeps none.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.metrics.calibration import reliability
from zoo.metrics.counts import TABLE, Counts, read_counts, write_counts
from zoo.model import Model
from zoo.report.page import DETAILS, kinds, read_json, worst_path
from zoo.training import record
from zoo.training.data import Splits
from zoo.training.module import Training

WORST = 6


def clear(folder: Path) -> None:
    """Remove what tests of an earlier model left."""
    for path in (folder / "test.json", folder / TABLE, folder / DETAILS, *folder.glob("worst_*.png")):
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Tested:
    """What was counted on a split, and what test_details.json says of it."""

    split: str
    counts: Counts
    details: dict[str, Any]


def take(module: Training, data: Splits, split: str) -> list[Tested]:
    """What the module has just counted on a split; nothing where its task counts nothing."""
    if module.counter is None or module.counted is None:
        return []
    counts = module.counter.counts(module.counted, names(data, split))
    confusion = module.counted["confusion"].tolist() if counts.mode != "multilabel" else None
    details: dict[str, Any] = {"mode": counts.mode, "classes": list(counts.classes), "confusion": confusion}
    details["calibration"] = reliability(module.counted["histogram"].cpu().numpy())
    return [Tested(split, counts, details)]


def write(folder: Path, found: Iterable[Tested], model: Model, data: Splits, device: torch.device) -> None:
    """Write what was counted, with what is there of other splits, and draw the worst images of each."""
    for one in found:
        details = read_json(folder / DETAILS)
        write_counts(folder / TABLE, read_counts(folder / TABLE, kinds(details)) | {one.split: one.counts})
        record.write_json(folder / DETAILS, details | {one.split: one.details})
        scores, place = one.counts.scores()[1], {name: i for i, name in enumerate(names(data, one.split))}
        order = [place[one.counts.images[i]] for i in np.argsort(scores, kind="stable") if not np.isnan(scores[i])]
        if order:
            record.draw_samples(model, data, one.split, device, worst_path(folder, one.split), order[:WORST])


def names(data: Splits, split: str) -> list[str]:
    """A split's images relative to the data's root: what one image is called in every run."""
    return [Path(os.path.relpath(pair.image, data.card.root or ".")).as_posix() for pair in data.pairs[split]]
