"""What a test counts in each image, as arrays and as test_images.csv; and the figures that follow from counts."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.files import aside

Array = np.ndarray[Any, np.dtype[Any]]

TABLE = "test_images.csv"
SUMS = ("hit", "truth", "predicted")


@dataclass(frozen=True)
class Counts:
    """Pixels of each image of a split, class by class; sums over images give the figures of the split.

    mode: of the segmentation task. images: names, relative to the data's root. classes: K names; of a binary task
    background and foreground. hit (right), truth, predicted: int64 (n, K). pixels: those that count, int64 (n,).
    """

    mode: str
    images: tuple[str, ...]
    classes: tuple[str, ...]
    hit: Array
    truth: Array
    predicted: Array
    pixels: Array

    def take(self, indices: Sequence[int]) -> "Counts":
        """Those images alone, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        kept = {name: getattr(self, name)[chosen] for name in (*SUMS, "pixels")}
        return Counts(self.mode, tuple(self.images[i] for i in chosen), self.classes, **kept)

    def resampled(self, weights: Array) -> dict[str, Array]:
        """The figures of the whole split, (R,) each, with image i taken weights[:, i] times; weights (R, n)."""
        sums = [weights @ getattr(self, name).astype(np.float64) for name in (*SUMS, "pixels")]
        return figures(*sums, mode=self.mode, classes=self.classes)

    def of_images(self) -> dict[str, Array]:
        """The figures of each image by itself, (n,) each."""
        return figures(self.hit, self.truth, self.predicted, self.pixels, mode=self.mode, classes=self.classes)

    def scores(self) -> tuple[str, Array]:
        """What images are ranked by: the foreground's IoU in binary, else the mean IoU; nan where there is nothing."""
        name = "iou" if self.mode == "binary" else "mean_iou"
        return name, self.of_images()[name]


def figures(
    hit: Array, truth: Array, predicted: Array, pixels: Array, *, mode: str, classes: Sequence[str]
) -> dict[str, Array]:
    """The figures of counts (..., K) and (...,), by name, as `SegmentationMetrics` defines them; nan where undefined.

    First the overall ones, then "iou/<class>", "dice/<class>", "precision/<class>" (of what is predicted, the share
    that is right) and "recall/<class>" (of the truth, the share that is found).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        iou, dice = hit / (truth + predicted - hit), 2 * hit / (truth + predicted)
        precision, recall = hit / predicted, hit / truth
        right, all_pixels = hit.sum(axis=-1), np.asarray(pixels)
        if mode == "multilabel":  # of every class, the pixels that are rightly off count too
            all_pixels = all_pixels * len(classes)
            right = all_pixels - truth.sum(axis=-1) - predicted.sum(axis=-1) + 2 * right
        mean = {"mean_iou": _mean(iou), "accuracy": right / all_pixels}
    overall = {"iou": iou[..., 1], "dice": dice[..., 1], **mean} if mode == "binary" else {**mean, "dice": _mean(dice)}
    kinds = {"iou": iou, "dice": dice, "precision": precision, "recall": recall}
    return overall | {f"{kind}/{name}": v[..., k] for kind, v in kinds.items() for k, name in enumerate(classes)}


def _mean(values: Array) -> Array:
    """The mean over the last axis of what is defined; nan where nothing is."""
    known = ~np.isnan(values)
    return np.asarray(np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1))


def write_counts(path: str | Path, splits: Mapping[str, Counts]) -> Path:
    """One row for each image: its split, name, pixels, overall figures, and the counts of each class."""
    rows = []
    for split, counts in splits.items():
        overall = {name: values for name, values in counts.of_images().items() if "/" not in name}
        for i, image in enumerate(counts.images):
            row: dict[str, Any] = {"split": split, "image": image, "pixels": counts.pixels[i]}
            row |= {name: "" if np.isnan(values[i]) else f"{values[i]:.6g}" for name, values in overall.items()}
            row |= {f"{sum_}/{c}": getattr(counts, sum_)[i, k] for sum_ in SUMS for k, c in enumerate(counts.classes)}
            rows.append(row)
    columns = dict.fromkeys(name for row in rows for name in row)
    # names of files need not be UTF-8
    with aside(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def read_counts(path: str | Path, kinds: Mapping[str, tuple[str, Sequence[str]]]) -> dict[str, Counts]:
    """What `write_counts` has written, of the splits in `kinds`: (mode, names of the classes) of each."""
    if not Path(path).is_file():
        return {}
    with Path(path).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for split, (mode, classes) in kinds.items():
        own = [row for row in rows if row["split"] == split]
        sums = {
            name: np.array([[int(row[f"{name}/{c}"]) for c in classes] for row in own], dtype=np.int64).reshape(
                len(own), len(classes)
            )
            for name in SUMS
        }
        pixels = np.array([int(row["pixels"]) for row in own], dtype=np.int64)
        found[split] = Counts(mode, tuple(row["image"] for row in own), tuple(classes), **sums, pixels=pixels)
    return found
