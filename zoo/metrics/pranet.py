"""PraNet's evaluation protocol: six figures of a map of probabilities against a binary mask, under their own names.

Source: the MATLAB toolbox that belongs to PraNet (Fan et al. 2020, arXiv 2006.11392), written anew from its formulas.
S-measure: Fan et al. 2017. E-measure: Fan et al. 2018. Weighted F: Margolin et al. 2014.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, distance_transform_edt
from torch import Tensor
from torchmetrics import Metric

from zoo.errors import UserError

Map = NDArray[np.float64]
Mask = NDArray[np.bool_]

THRESHOLDS: Map = np.arange(256) / 255
EPS = 2.0**-52  # MATLAB's eps
_BELL = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 5.0**2))
BLUR: Map = _BELL / _BELL.sum()  # one side of the 7x7 Gaussian of sigma 5


class PraNetMetrics(Metric):
    """PraNet's figures of a binary task, each a mean over images, small and large ones alike; summed over processes.

    Each image's probabilities are stretched to 0..1 first (the smallest becomes 0, the largest 1), then rounded to
    8 bits, as PraNet's test code writes them to a file (u8=False leaves the rounding out). So every image is held to
    have some foreground, and a map of one value alone counts as all background.
    compute() gives float64 scalars:
    - dice_mean256, iou_mean256, e_mean256: Dice, IoU and E-measure at the 256 thresholds 0, 1/255, ..., 1 are averaged
      over the images, threshold by threshold; this is the mean of that curve. It is no Dice at one threshold: a
      perfect binary map reaches less than 1, since at threshold 0 everything is foreground.
    - dice_max256, iou_max256, e_max256: the largest value of the same curve, not a mean of each image's own largest.
    - s_measure, weighted_f (both of structure; 1 is perfect) and mae, the mean of |probability - mask| (0 is perfect).
    PraNet's tables have dice_mean256, iou_mean256, weighted_f, s_measure, e_max256 and mae.
    An image whose mask has no foreground gets Dice and IoU of 0 whatever is predicted, as in the toolbox, and S, E and
    MAE as for any other; its weighted F is undefined, and left out of that mean. The protocol's own sets have no such
    image. Where no image was measured, everything is nan.
    Images are measured one by one in float64 on the CPU.
    """

    full_state_update = False
    curves: Tensor  # float64 sums over images (3, 256): Dice, IoU, E at thresholds 1, 254/255, ..., 0
    sums: Tensor  # float64 sums over images (3,): S-measure, MAE, weighted F
    images: Tensor  # int64
    with_foreground: Tensor  # int64: the images that have a weighted F

    def __init__(self, *, u8: bool = True):
        super().__init__()
        self.u8 = u8
        self.add_state("curves", torch.zeros(3, 256, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("with_foreground", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, answer: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Measure each image of a batch, at the size of its mask.

        answer: the task's, with `probabilities` (B, 1, H, W) in [0, 1]. batch: `mask`, 0 and 1 (B, H, W), or soft
        (B, 1, H, W) in [0, 1], whose foreground is above 128 of 255. Raises UserError on sizes that differ, on
        probabilities that are none, and on masks with other values: the protocol knows no ignored pixels.
        """
        mask = batch["mask"][:, None] if batch["mask"].ndim == 3 else batch["mask"]
        probabilities = answer["probabilities"]
        if mask.shape != probabilities.shape:
            raise UserError(
                f"The mask (B, 1, height, width) is {tuple(mask.shape)}, but the probabilities are"
                f" {tuple(probabilities.shape)}; PraNet's protocol measures at the mask's size."
            )
        if not ((probabilities >= 0) & (probabilities <= 1)).all():  # nan is neither
            raise UserError(
                "The model answers with probabilities that are not in 0 to 1, perhaps nan; it cannot be used."
            )
        legal = (mask >= 0) & (mask <= 1)
        if not legal.all():
            raise UserError(
                f"{int((~legal).sum())} pixels of a mask are {mask[~legal][0].item():g}, neither foreground nor"
                " background, but PraNet's protocol leaves no pixel out; map them to a class, or take --protocol null."
            )
        truths = mask > 128.5 / 255 if mask.is_floating_point() else mask == 1
        curves, sums, known = np.zeros((3, 256)), np.zeros(3), 0
        for p, g in zip(probabilities[:, 0].cpu().double().numpy(), truths[:, 0].cpu().numpy(), strict=True):
            prediction = written(p, u8=self.u8)
            curves += dice_iou_e(prediction, g)
            f = weighted_f(prediction, g)
            sums += s_measure(prediction, g), np.abs(g - prediction).mean(), 0.0 if math.isnan(f) else f
            known += not math.isnan(f)
        self.curves += torch.from_numpy(curves).to(self.curves)
        self.sums += torch.from_numpy(sums).to(self.sums)
        self.images += len(mask)
        self.with_foreground += known

    def compute(self) -> dict[str, Tensor]:
        """The figures, float64 scalars by name; see the class."""
        mean, best = (self.curves / self.images).mean(dim=1), (self.curves / self.images).amax(dim=1)
        return {
            "dice_mean256": mean[0],
            "dice_max256": best[0],
            "iou_mean256": mean[1],
            "iou_max256": best[1],
            "s_measure": self.sums[0] / self.images,
            "e_mean256": mean[2],
            "e_max256": best[2],
            "weighted_f": self.sums[2] / self.with_foreground,
            "mae": self.sums[1] / self.images,
        }


def written(probabilities: Map, *, u8: bool = True) -> Map:
    """Probabilities (H, W) as PraNet's test code writes them to a PNG: stretched to 0..1, in steps of 1/255.

    One value everywhere becomes 0. u8: False = without the steps. (The code stretches twice, first with 1e-8 added to
    the range; the second time, when the file is written, undoes that.)
    """
    if probabilities.min() == probabilities.max():
        return np.zeros_like(probabilities)
    found = stretched(probabilities)
    return np.floor(found * 255 + 0.5) / 255 if u8 else found


def stretched(found: Map) -> Map:
    """A map with its smallest value at 0 and its largest at 1, as the toolbox reads it; one value alone stays."""
    low, high = found.min(), found.max()
    return found if low == high else (found - low) / (high - low)


def dice_iou_e(prediction: Map, truth: Mask) -> Map:
    """Dice, IoU and E-measure (3, 256) at the thresholds 1, 254/255, ..., 0; foreground is what reaches a threshold.

    prediction (H, W) in [0, 1], truth (H, W). Dice and IoU are 0 where nothing is hit. The E-measure is a sum over
    pixels divided by their number less one, as in the toolbox: perfect is a little above 1.
    """
    level = np.floor(prediction * 255 + 0.5).astype(np.int64)
    level -= THRESHOLDS[level] > prediction  # now the highest threshold that is reached, exactly
    histograms = np.bincount((level + 256 * truth).ravel(), minlength=512).reshape(2, 256)
    fp, tp = histograms[:, ::-1].cumsum(axis=1)  # from threshold 1 down, ever more pixels are on
    pixels, positives = truth.size, int(truth.sum())
    on = tp + fp
    dice = 2 * tp / np.maximum(positives + on, 1)
    iou = tp / np.maximum(positives + fp, 1)
    if positives == 0:
        alike = (pixels - on).astype(np.float64)
    elif positives == pixels:
        alike = on.astype(np.float64)
    else:
        # A pixel's term depends on nothing but its truth and its decision, so four terms stand for all pixels.
        g, b = positives / pixels, on / pixels
        alike = tp * _aligned(1 - g, 1 - b) + fp * _aligned(-g, 1 - b)
        alike += (positives - tp) * _aligned(1 - g, -b) + (pixels - positives - fp) * _aligned(-g, -b)
    return np.stack([dice, iou, alike / max(pixels - 1, 1)])


def _aligned(g: float, b: Map) -> Map:
    """Enhanced alignment of a pixel whose truth and decision differ from their means by g and b, in [0, 1]."""
    return (2 * g * b / (g**2 + b**2 + EPS) + 1) ** 2 / 4


def s_measure(prediction: Map, truth: Mask) -> float:
    """Structure measure of a map (H, W) in [0, 1]: half of it of the object, half of four regions; in [0, 1]."""
    share = float(truth.mean())
    if share in (0.0, 1.0):
        return float(prediction.mean() if share else 1 - prediction.mean())
    objects = share * _uniform(prediction[truth]) + (1 - share) * _uniform(1 - prediction[~truth])
    return max(0.0, 0.5 * objects + 0.5 * _regions(prediction, truth))


def _uniform(values: Map) -> float:
    """How bright and even an object's values are, in [0, 1]."""
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + spread + EPS)


def _regions(prediction: Map, truth: Mask) -> float:
    """Similarity of the four blocks about the mask's centroid, weighted by their areas; empty blocks have no area."""
    rows, columns = np.nonzero(truth)
    y, x = (math.floor(place.mean() + 1.5) for place in (rows, columns))  # pixels count from 1; halves round up
    blocks = [(slice(a, b), slice(c, d)) for a, b in ((0, y), (y, None)) for c, d in ((0, x), (x, None))]
    return sum(
        _similar(prediction[block], truth[block].astype(np.float64)) * truth[block].size / truth.size
        for block in blocks
        if truth[block].size
    )


def _similar(p: Map, g: Map) -> float:
    """SSIM of two blocks as a whole, without its constants."""
    x, y, freedom = p.mean(), g.mean(), p.size - 1 + EPS
    # a mean of equal values can be a rounding beside them, and whether there is any spread decides below
    dx, dy = p - (p.flat[0] if p.min() == p.max() else x), g - y
    above = 4 * x * y * (dx * dy).sum() / freedom
    below = (x**2 + y**2) * ((dx**2).sum() + (dy**2).sum()) / freedom
    if above != 0:
        return float(above / (below + EPS))
    return 1.0 if below == 0 else 0.0


def weighted_f(prediction: Map, truth: Mask) -> float:
    """Weighted F-measure (beta 1) of a map (H, W) in [0, 1]; nan where the mask has no foreground.

    Errors near each other inside the object count as one, and those outside count more the farther away they are.
    Where two foreground pixels are equally near, which of them is taken is SciPy's choice.
    """
    if not truth.any():
        return math.nan
    distance, (row, column) = distance_transform_edt(~truth, return_indices=True)
    error = np.abs(prediction - truth)
    blurred = error[row, column]  # of the nearest foreground pixel; on the foreground, its own
    for axis in (0, 1):
        blurred = correlate1d(blurred, BLUR, axis=axis, mode="constant")
    weighted = np.where(truth, np.minimum(error, blurred), error * (2 - np.exp(math.log(0.5) / 5 * distance)))
    missed, false = weighted[truth].sum(), weighted[~truth].sum()
    hit = truth.sum() - missed
    recall, precision = 1 - missed / truth.sum(), hit / (EPS + hit + false)
    return float(2 * recall * precision / (EPS + recall + precision))
