"""What a test counts beside its metrics: each image by itself, the confusion matrix, and how sure the model was."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from zoo.metrics.calibration import STEPS
from zoo.metrics.counts import Counts
from zoo.metrics.segmentation import confusions, truth_of


class ImageCounts(Metric):
    """Counts of a segmentation, image by image; kept small: no mask and no map of probabilities stays.

    paths: of the images of a split, as batches name them; an image that two processes measure counts once among the
    images. compute() gives int64 tensors: `pixels` that count (n,), -1 of an image that was not measured; `sums`
    (n, L, 3), of each of the L classes (two in binary) the pixels that are right, in the truth, and predicted;
    `confusion` (L, L) [truth, prediction], (K, 2, 2) in multilabel; `histogram` (STEPS + 1, 2), wrong and right by
    confidence: in multiclass that of the winning class, else the probability of each class, "right" where the truth
    has it.
    """

    full_state_update = False
    pixels: Tensor
    sums: Tensor
    confusion: Tensor
    histogram: Tensor

    def __init__(
        self,
        paths: Sequence[str],
        num_classes: int,
        *,
        mode: str,
        ignore_index: int | None = 255,
        class_names: Sequence[str] | None = None,
    ):
        super().__init__()
        self.place = {path: i for i, path in enumerate(paths)}
        self.num_classes, self.mode, self.ignore_index = num_classes, mode, ignore_index
        names = tuple(class_names or (["foreground"] if num_classes == 1 else map(str, range(num_classes))))
        self.classes = ("background", *names) if mode == "binary" else names
        labels = len(self.classes)
        shape = (num_classes, 2, 2) if mode == "multilabel" else (labels, labels)
        self.add_state("pixels", torch.full((len(paths),), -1), dist_reduce_fx="max")
        for name, size, reduce in (
            ("sums", (len(paths), labels, 3), "max"),
            ("confusion", shape, "sum"),
            ("histogram", (STEPS + 1, 2), "sum"),
        ):
            self.add_state(name, torch.zeros(size, dtype=torch.int64), dist_reduce_fx=reduce)

    def update(self, answer: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Count one batch; answer and batch as for `SegmentationMetrics`, with `probabilities` and `path`."""
        found = confusions(answer, batch, mode=self.mode, num_classes=self.num_classes, ignore_index=self.ignore_index)
        places = torch.tensor([self.place[path] for path in batch["path"]], device=found.device)
        if self.mode == "multilabel":
            hit, truth, predicted = found[:, :, 1, 1], found[:, :, 1].sum(dim=2), found[:, :, :, 1].sum(dim=2)
            pixels = found[:, 0].sum(dim=(1, 2))
        else:
            hit, truth, predicted = found.diagonal(dim1=1, dim2=2), found.sum(dim=2), found.sum(dim=1)
            pixels = found.sum(dim=(1, 2))
        self.pixels[places] = pixels
        self.sums[places] = torch.stack([hit, truth, predicted], dim=2)
        self.confusion += found.sum(dim=0)
        self.histogram += self._confidences(answer, batch)

    def _confidences(self, answer: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        probabilities, (truth, valid) = answer["probabilities"], truth_of(batch["mask"], self.mode, self.ignore_index)
        if self.mode == "multiclass":
            winner = answer["mask"].long()
            confidence = probabilities.gather(1, winner[:, None])[:, 0]
            right = winner == truth
        else:
            confidence = probabilities[:, 0] if self.mode == "binary" else probabilities
            right = truth == 1
        level = (confidence.nan_to_num() * STEPS).round().clamp(0, STEPS).long()
        return torch.bincount((2 * level + right)[valid], minlength=2 * (STEPS + 1)).reshape(-1, 2)

    def compute(self) -> dict[str, Tensor]:
        """The states, summed over processes; see the class."""
        return {name: getattr(self, name) for name in ("pixels", "sums", "confusion", "histogram")}

    def counts(self, found: Mapping[str, Tensor], names: Sequence[str]) -> Counts:
        """What was computed, of the images that were measured, under their names."""
        hit, truth, predicted = found["sums"].cpu().numpy().transpose(2, 0, 1)
        pixels = found["pixels"].cpu().numpy().reshape(-1)  # torchmetrics makes a scalar of one image's
        every = Counts(self.mode, tuple(names), self.classes, hit, truth, predicted, pixels)
        return every.take([i for i, number in enumerate(pixels) if number >= 0])
