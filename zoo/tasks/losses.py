"""The segmentation losses as functions of logits and target.

The target's shape says which classes are meant: ids (B, H, W) int64 are exclusive classes (softmax), one map per class
(B, K, H, W) with values in [0, 1], soft ones included, are independent classes (sigmoid). Pixels whose target equals
`ignore_index` count nowhere: not in sums, counts, neighbourhoods or gradients; where nothing is left the loss is 0.
`class_weights` make a mean over pixels a weighted one, sum(w loss) / sum(w), w being the weight of the pixel's class:
(K,) of exclusive classes; of independent ones (2,), of the background and of the foreground of each map.
Everything is computed in float32 at least, so that sums over half-precision logits do not overflow.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import UserError

WINDOW = 31  # side of the neighbourhood in the structure loss, in pixels


def bce(
    logits: Tensor, target: Tensor, ignore_index: int | None = None, *, class_weights: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of independent classes, mean over pixels and classes.

    A soft target t is t of the foreground and 1 - t of the background, in its loss and in its weight.
    logits and target (B, K, H, W); gives a scalar.
    """
    logits, truth, valid = _independent(logits, target, ignore_index)
    if class_weights is None:
        return _mean(F.binary_cross_entropy_with_logits(logits, truth, reduction="none"), valid)
    off, on = class_weights.to(truth.dtype)
    background, foreground = off * (1 - truth), on * truth
    values = -foreground * F.logsigmoid(logits) - background * F.logsigmoid(-logits)
    return _weighted_mean(values, foreground + background, valid)


def ce(
    logits: Tensor, target: Tensor, ignore_index: int | None = None, *, class_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of exclusive classes, mean over pixels.

    logits (B, K, H, W), target (B, H, W) int64 ids; gives a scalar.
    """
    logits, ids, valid = _exclusive(logits, target, ignore_index)
    # reduction="none", then a sum of our own: torch's sum over pixels is not deterministic on CUDA.
    values = F.cross_entropy(logits, ids, reduction="none")
    if class_weights is None:
        return _mean(values, valid)
    weight = class_weights.to(values.dtype)[ids]
    return _weighted_mean(weight * values, weight, valid)


def dice(logits: Tensor, target: Tensor, ignore_index: int | None = None, *, smooth: float = 0.0) -> Tensor:
    """Soft Dice loss: 1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), per class over the batch.

    The mean is taken over classes that the batch's target holds; without any, as with empty masks in binary, the loss
    is 0, and false positives are left to the term beside it. logits (B, K, H, W); target as ids or as maps.
    Source: Milletari et al. 2016 (arXiv 1606.04797) without the squares; sums over the batch as in
    segmentation_models_pytorch, where absent classes count in the mean as 0 and `smooth` is added to half the sizes.
    """
    if target.ndim == 3:
        logits, ids, valid = _exclusive(logits, target, ignore_index)
        valid = valid[:, None]
        truth = (ids[:, None] == torch.arange(logits.shape[1], device=ids.device)[:, None, None]) & valid
        p = logits.softmax(dim=1)
    else:
        logits, truth, valid = _independent(logits, target, ignore_index)
        p = logits.sigmoid()
    p = torch.where(valid, p, 0.0)
    overlap = (p * truth).sum(dim=(0, 2, 3))  # K
    size = truth.to(p.dtype).sum(dim=(0, 2, 3))
    score = (2 * overlap + smooth) / (p.sum(dim=(0, 2, 3)) + size + smooth).clamp_min(1e-7)
    return _mean(1 - score, size > 0)


def focal(
    logits: Tensor,
    target: Tensor,
    ignore_index: int | None = None,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Focal loss -(1 - p_t)^gamma log p_t, mean over pixels (and over classes where they are independent).

    gamma >= 0; alpha in [0, 1] weighs the foreground, 1 - alpha the background (independent classes alone), and unlike
    `class_weights` it is in the sum only, not in what the sum is divided by. A soft target t mixes the losses of both
    labels, t of the foreground's and 1 - t of the background's.
    logits (B, K, H, W); target as ids or as maps. Source: Lin et al. 2017 (arXiv 1708.02002), equations 4 and 5.
    """
    if target.ndim == 3:
        if alpha is not None:
            raise UserError(
                f"alpha = {alpha} weighs foreground against background; exclusive classes have none, drop it."
            )
        logits, ids, valid = _exclusive(logits, target, ignore_index)
        log_p = -F.cross_entropy(logits, ids, reduction="none")
        # At 0 the power has an infinite slope for gamma below 1; times a zero gradient that would be nan.
        miss = -torch.expm1(log_p)
        values = -(miss.clamp_min(1e-12) ** gamma) * log_p
        if class_weights is None:
            return _mean(values, valid)
        weight = class_weights.to(values.dtype)[ids]
        return _weighted_mean(weight * values, weight, valid)
    logits, truth, valid = _independent(logits, target, ignore_index)
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)  # of foreground and background
    # The powers are taken through logarithms: finite, gradients too, for any logit and any gamma.
    foreground = -truth * (gamma * log_q).exp() * log_p
    background = -(1 - truth) * (gamma * log_p).exp() * log_q
    if alpha is not None:
        foreground, background = alpha * foreground, (1 - alpha) * background
    if class_weights is None:
        return _mean(foreground + background, valid)
    off, on = class_weights.to(truth.dtype)
    return _weighted_mean(on * foreground + off * background, on * truth + off * (1 - truth), valid)


def structure(logits: Tensor, target: Tensor, ignore_index: int | None = None, *, as_coded: bool = False) -> Tensor:
    """Weighted BCE + weighted IoU loss, which stress pixels unlike their neighbourhood; per class, mean over images.

    Weights are 1 + 5 |mean of the target in 31x31 - target|; beyond the image the target counts as 0. Of ignored
    pixels the neighbourhood's mean takes no account (they are neither in its sum nor in its count), and a map that is
    ignored as a whole is left out of the mean over images.
    as_coded: the published code's form, whose BCE is the plain mean over the batch (its `reduce='none'` is read as
    true, and the weights cancel); the default is the paper's.
    logits and target (B, K, H, W), independent classes. Source: PraNet (arXiv 2006.11392), section 2.4, after F3Net
    (arXiv 1911.11445).
    """
    logits, truth, valid = _independent(logits, target, ignore_index)
    share = 1 - _pool((~valid).to(truth.dtype))  # of the window that is not ignored; 1 without ignored pixels
    around = _pool(truth) / share.clamp_min(1 / WINDOW**2)
    weight = torch.where(valid, 1 + 5 * (around - truth).abs(), 0.0)

    p = logits.sigmoid()
    overlap = (weight * p * truth).sum(dim=(2, 3))  # B, K
    union = (weight * (p + truth)).sum(dim=(2, 3)) - overlap
    iou = 1 - (overlap + 1) / (union + 1)

    pixels = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    seen = valid.any(dim=3).any(dim=2)  # B, K
    if as_coded:
        return _mean(pixels, valid) + _mean(iou, seen)
    weighted = (weight * pixels).sum(dim=(2, 3)) / weight.sum(dim=(2, 3)).clamp_min(1)
    return _mean(weighted + iou, seen)


def full_precision(x: Tensor) -> Tensor:
    """x in float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def _pool(x: Tensor) -> Tensor:
    """Mean over the window around each pixel, zeros beyond the image counted; by rows and columns, 15 times cheaper."""
    x = F.avg_pool2d(x, (WINDOW, 1), stride=1, padding=(WINDOW // 2, 0))
    return F.avg_pool2d(x, (1, WINDOW), stride=1, padding=(0, WINDOW // 2))


def _independent(logits: Tensor, target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """logits, truth with 0 at ignored pixels, and which pixels count; all (B, K, H, W)."""
    if target.shape != logits.shape:
        raise UserError(
            f"This loss is for independent classes, one target map for each: the target is {tuple(target.shape)}, the"
            f" logits are {tuple(logits.shape)}; give both the same shape, or use ce for class ids."
        )
    logits = full_precision(logits)
    valid = _valid(target, ignore_index)
    return logits, torch.where(valid, target.to(logits.dtype), 0.0), valid


def _exclusive(logits: Tensor, target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """logits (B, K, H, W), ids with 0 at ignored pixels and which pixels count, both (B, H, W)."""
    if target.shape != (logits.shape[0], *logits.shape[2:]) or target.dtype != torch.int64:
        raise UserError(
            f"This loss is for exclusive classes: the target must be int64 ids of shape (B, H, W), not {target.dtype}"
            f" {tuple(target.shape)} beside logits {tuple(logits.shape)}; use bce for one map per class."
        )
    valid = _valid(target, ignore_index)
    return full_precision(logits), torch.where(valid, target, 0), valid


def _valid(target: Tensor, ignore_index: int | None) -> Tensor:
    return torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean of `values` where `where` is true; 0, with gradient 0, where it is true nowhere."""
    return torch.where(where, values, 0.0).sum() / where.sum().clamp_min(1)


def _weighted_mean(weighted: Tensor, weight: Tensor, where: Tensor) -> Tensor:
    """Sum of the values, each times its weight already, over the sum of the weights, where `where` is true; else 0."""
    total = torch.where(where, weight, 0.0).sum()
    return torch.where(where, weighted, 0.0).sum() / torch.where(total > 0, total, 1.0)
