"""Segmentation metrics, all from one confusion matrix over the data set."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from zoo.errors import UserError


class SegmentationMetrics(Metric):
    """IoU, Dice and pixel accuracy over all pixels of all images, summed over processes.

    Counts are added up first and divided once, so every pixel weighs the same: these are not means over images.
    compute() gives scalars. multiclass and multilabel: mean_iou and dice (means over classes), accuracy, and
    "iou/<class>" (by name, or by id where there are no names). binary: iou and dice of the foreground, accuracy, and
    mean_iou of foreground and background.
    A class that is neither in the truth nor predicted has no IoU (nan) and is left out of the means; one that is
    predicted but not in the truth has 0 and counts, and so has one that was missed. Where nothing was measured, no
    image or only ignored pixels, everything is nan. accuracy is the share of right pixels, in multilabel of right
    (pixel, class) pairs.
    """

    full_state_update = False
    higher_is_better = True
    confusion: Tensor  # int64 counts [truth, prediction]: (K, K), (2, 2) in binary, (K, 2, 2) in multilabel

    def __init__(
        self,
        num_classes: int,
        *,
        mode: str,
        ignore_index: int | None = 255,
        class_names: Sequence[str] | None = None,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.mode = mode
        self.ignore_index = ignore_index
        self.class_names = tuple(class_names or map(str, range(num_classes)))
        self.labels = num_classes if mode == "multiclass" else 2
        shape = (num_classes, 2, 2) if mode == "multilabel" else (self.labels, self.labels)
        self.add_state("confusion", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, answer: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Count one batch, of any size.

        answer: the task's, with `mask` ids (B, H, W), or (B, K, H, W) bool in multilabel. batch: `mask` as the loss
        takes it; a soft one is foreground where it is above 0.5. Raises UserError on sizes that differ and on unknown
        ids.
        """
        found = confusions(answer, batch, mode=self.mode, num_classes=self.num_classes, ignore_index=self.ignore_index)
        self.confusion += found.sum(dim=0)

    def compute(self) -> dict[str, Tensor]:
        """The figures, float32 scalars by name; see the class."""
        if self.mode == "multilabel":
            hit = self.confusion[:, 1, 1]
            in_truth, in_answer = self.confusion[:, 1].sum(dim=1), self.confusion[:, :, 1].sum(dim=1)
            right = hit.sum() + self.confusion[:, 0, 0].sum()
        else:
            hit = self.confusion.diagonal()
            in_truth, in_answer = self.confusion.sum(dim=1), self.confusion.sum(dim=0)
            right = hit.sum()
        iou = hit / (in_truth + in_answer - hit)  # 0 / 0 = nan: absent from both
        dice = 2 * hit / (in_truth + in_answer)
        overall = {"mean_iou": iou.nanmean(), "accuracy": right / self.confusion.sum()}
        if self.mode == "binary":
            return {"iou": iou[1], "dice": dice[1], **overall}
        each = {f"iou/{name}": value for name, value in zip(self.class_names, iou.unbind(), strict=True)}
        return {**overall, "dice": dice.nanmean(), **each}


def confusions(
    answer: Mapping[str, Any], batch: Mapping[str, Any], *, mode: str, num_classes: int, ignore_index: int | None
) -> Tensor:
    """Counts [truth, prediction] of each image, int64: (B, K, K), (B, 2, 2) in binary, (B, K, 2, 2) in multilabel.

    answer, batch and what is raised: as in `SegmentationMetrics.update`.
    """
    predicted, (truth, valid) = answer["mask"].long(), truth_of(batch["mask"], mode, ignore_index)
    if truth.shape != predicted.shape:
        raise UserError(
            f"The mask is {tuple(truth.shape)}, but the answer is {tuple(predicted.shape)}; measure at the mask's size."
        )
    labels = num_classes if mode == "multiclass" else 2
    shape = (num_classes, 2, 2) if mode == "multilabel" else (labels, labels)
    cells = math.prod(shape)
    place = truth * labels + predicted
    if mode == "multilabel":
        place = place + 4 * torch.arange(num_classes, device=place.device)[:, None, None]
    known = (truth >= 0) & (truth < labels) & (predicted >= 0) & (predicted < labels)
    # Two more cells: ignored pixels, and ids that no class has, which would land in another class's cell.
    place = torch.where(valid, torch.where(known, place, cells + 1), cells).flatten(1)
    place += (cells + 2) * torch.arange(len(place), device=place.device)[:, None]  # each image has cells of its own
    counts = torch.bincount(place.flatten(), minlength=len(place) * (cells + 2)).reshape(len(place), cells + 2)
    if (wrong := int(counts[:, cells + 1].sum())) > 0:
        ids = torch.stack([truth, predicted])[:, valid & ~known]
        raise UserError(
            f"{wrong} pixels have ids outside 0 to {labels - 1}, such as"
            f" {int(ids[(ids < 0) | (ids >= labels)][0])}; map them to classes or to ignore_index ({ignore_index})."
        )
    return counts[:, :cells].reshape(-1, *shape)


def truth_of(mask: Tensor, mode: str, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """(ids, which pixels count) of a mask as the loss takes it; a soft one is foreground where it is above 0.5."""
    valid = torch.ones_like(mask, dtype=torch.bool)
    if ignore_index is not None and mode != "multilabel":
        valid = mask != ignore_index
    if mask.is_floating_point():
        mask, valid = (mask > 0.5)[:, 0], valid[:, 0]
    return mask.long(), valid
