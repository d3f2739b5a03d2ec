"""Semantic segmentation: one class per pixel, or one yes or no per pixel and class."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import UserError, nearest
from zoo.layers import resize
from zoo.registry import register_task
from zoo.tasks import losses

INDEPENDENT: dict[str, Callable[..., Tensor]] = {
    "bce": losses.bce,
    "dice": losses.dice,
    "focal": losses.focal,
    "structure": losses.structure,
    "structure_as_coded": partial(losses.structure, as_coded=True),
}
TERMS: dict[str, dict[str, Callable[..., Tensor]]] = {  # mode -> the loss terms that suit it
    "binary": INDEPENDENT,
    "multiclass": {"ce": losses.ce, "dice": losses.dice, "focal": losses.focal},
    "multilabel": INDEPENDENT,
}
WEIGHED = ("bce", "ce", "focal")  # terms that take class weights: dice counts classes alike, structure has its own
DEFAULT_LOSS = {
    "binary": {"bce": 1.0, "dice": 1.0},
    "multiclass": {"ce": 1.0, "dice": 1.0},
    "multilabel": {"bce": 1.0, "dice": 1.0},
}


@register_task
class Segmentation:
    """Semantic segmentation: binary, multiclass or multilabel.

    mode: None = binary with one class, else multiclass (background is a class of its own there).
    threshold: probability in [0, 1] above which a class is on; not for multiclass, where the most probable class wins.
    ignore_index: the id in masks that neither losses nor metrics count; None = there is none. Masks of multilabel hold
    0 and 1 alone. class_names, class_colors (red, green, blue, 0..255): one for each class; in binary that is the
    foreground's alone. Raises UserError on options that do not fit each other.
    """

    name = "segmentation"
    planes: Mapping[str, int] = {}  # maps beside the image, and how many channels each has
    prompts: Mapping[str, Callable[[Tensor], Tensor]] = {}  # other inputs, and an example of each for an image
    maps: tuple[str, ...] = ("logits",)  # outputs that the model brings to the image's size
    pixelwise = True  # each pixel's answer is a function of its own values in the maps: large images answer by rows

    def __init__(
        self,
        num_classes: int,
        *,
        mode: str | None = None,
        threshold: float = 0.5,
        ignore_index: int | None = 255,
        class_names: Sequence[str] | None = None,
        class_colors: Sequence[Sequence[int]] | None = None,
    ):
        if not _is_int(num_classes) or num_classes < 1:
            raise UserError(f"num_classes must be a whole number from 1 up, not {num_classes!r}.")
        mode = mode or ("binary" if num_classes == 1 else "multiclass")
        if mode not in TERMS:
            raise UserError(f"There is no mode {mode!r}{nearest(mode, TERMS) or '.'} Modes: {', '.join(TERMS)}.")
        if (mode == "binary") != (num_classes == 1) and mode != "multilabel":
            need = "1 class, the foreground" if mode == "binary" else "2 classes or more, background among them"
            raise UserError(f"The mode {mode!r} needs {need}, but num_classes is {num_classes}.")
        _check_threshold(threshold)
        if mode == "multiclass" and threshold != 0.5:
            raise UserError(_no_threshold(threshold))
        if ignore_index is not None and not _is_int(ignore_index):
            raise UserError(f"ignore_index must be a whole number or null, not {ignore_index!r}.")
        if mode == "binary" and ignore_index in (0, 1):
            raise UserError(
                f"ignore_index = {ignore_index} is a label of binary masks; choose another id, such as 255."
            )

        self.num_classes = num_classes
        self.num_outputs = num_classes
        self.mode = mode
        self.exclusive = mode == "multiclass"
        self.threshold = float(threshold)
        self.ignore_index = ignore_index
        self.class_names = None if class_names is None else tuple(class_names)
        self.class_colors = None if class_colors is None else tuple(tuple(color) for color in class_colors)
        self._check_classes()

    @property
    def config(self) -> dict[str, Any]:
        """What builds this task again beside num_classes, as JSON: its name and every option."""
        return {
            "name": self.name,
            "mode": self.mode,
            "threshold": self.threshold,
            "ignore_index": self.ignore_index,
            "class_names": None if self.class_names is None else list(self.class_names),
            "class_colors": None if self.class_colors is None else [list(color) for color in self.class_colors],
        }

    def loss(
        self,
        outputs: Mapping[str, Any],
        batch: Mapping[str, Any],
        weights: Mapping[str, float] | None = None,
        *,
        decoder_weights: Mapping[str, float] | None = None,
        class_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms of the loss, each times its weight, and their sum as "loss".

        outputs: logits (B, K, H, W), perhaps `aux` (list of logits at any size: each is resized to the target's and
        their losses added up, as "<term>_aux") and `losses` (named scalars of the decoder).
        batch: `mask`, int64 ids (B, H, W); in binary also soft (B, 1, H, W) float in [0, 1]; in multilabel (B, K, H, W)
        bool or uint8. weights: of terms, "main" (on logits; 1), "aux" (on all of `aux`; 1), the decoder's losses (1);
        terms that are not named have none, unless no term is named at all: then the default holds, {bce: 1, dice: 1},
        or {ce: 1, dice: 1} in multiclass. decoder_weights: the decoder's `loss_weights`, its own names and defaults.
        class_weights: of bce, ce and focal, as `check_class_weights` has it; float, on the logits' device.
        Raises UserError on unknown names and, as in `check`, on a target that does not fit.
        """
        own = outputs.get("losses", {})
        weights = weights or {}
        self.check_weights(weights, {*own, *(decoder_weights or {})})
        weight = {**(decoder_weights or {}), **weights}
        terms = TERMS[self.mode]
        active = self._active(weight)
        weighed = {} if class_weights is None else {"class_weights": class_weights}

        logits, mask = outputs["logits"], batch["mask"]
        self._check_logits(logits, mask)
        self.check(batch)
        target = mask[:, None] if self.mode == "binary" and mask.ndim == 3 else mask
        ignore = None if self.mode == "multilabel" else self.ignore_index
        # Full precision before the resize: a coarse map in half precision would be interpolated coarsely too.
        aux = [resize(losses.full_precision(x), tuple(target.shape[-2:])) for x in outputs.get("aux", [])]

        result: dict[str, Tensor] = {}
        for suffix, part, maps in (("", "main", [logits]), ("_aux", "aux", aux)):
            for name, factor in active.items():
                scale = factor * weight.get(part, 1.0)
                if maps and scale:
                    options = weighed if name in WEIGHED else {}
                    values = [terms[name](x, target, ignore, **options) for x in maps]
                    result[name + suffix] = scale * torch.stack(values).sum()
        for name, value in own.items():
            result[name] = weight.get(name, 1.0) * losses.full_precision(value)
        total = torch.stack(list(result.values())).sum() if result else logits.new_zeros((), dtype=torch.float32)
        return {"loss": total, **result}

    def answer(
        self,
        outputs: Mapping[str, Any],
        threshold: float | None = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The decision and the probabilities; pure tensor code, part of what is exported.

        mask: ids (B, H, W), uint8, int64 above 255 classes; in binary 1 is the foreground, in multilabel it is
        (B, K, H, W) bool. probabilities: (B, K, H, W) float32. threshold: in place of the task's own; a class is on
        where its probability is above it. inputs: the image and what went in beside it; not needed here.
        Raises UserError on a threshold outside 0..1 or in multiclass.
        """
        logits = losses.full_precision(outputs["logits"])
        if self.exclusive:
            if threshold is not None:
                raise UserError(_no_threshold(threshold))
            ids = logits.argmax(dim=1)
            mask = ids.to(torch.uint8) if self.num_classes <= 255 else ids
            return {"mask": mask, "probabilities": logits.softmax(dim=1)}
        if threshold is None:
            threshold = self.threshold
        _check_threshold(threshold)
        probabilities = logits.sigmoid()
        on = probabilities > threshold
        return {"mask": on[:, 0].to(torch.uint8) if self.mode == "binary" else on, "probabilities": probabilities}

    def margins(self, answer: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How near each decision is to tipping, in its own shape: the top two's distance, or that to the threshold."""
        p = answer["probabilities"]
        if self.exclusive:
            first, second = p.topk(2, dim=1).values.unbind(dim=1)
            return {"mask": first - second}
        distance = (p - self.threshold).abs()
        return {"mask": distance[:, 0] if self.mode == "binary" else distance}

    def average(self, outputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Raw outputs of several models as one: logits (B, K, H, W) whose probabilities are the mean of theirs.

        Not the mean of logits: these have no bound, so that one model that is sure beyond reason would outvote all
        others. Computed from log-probabilities, so that neither 0 nor 1 is ever rounded to.
        """
        logits = [losses.full_precision(one["logits"]) for one in outputs]
        if self.exclusive:
            return {"logits": _log_mean([x.log_softmax(dim=1) for x in logits])}
        return {"logits": _log_mean([F.logsigmoid(x) for x in logits]) - _log_mean([F.logsigmoid(-x) for x in logits])}

    def check(self, batch: Mapping[str, Any]) -> None:
        """Raise UserError where the batch's mask has a wrong shape, dtype or value.

        Values are looked at on the CPU alone: on a GPU that would make every step wait. The loss calls this with what
        it is given; called on a batch before it is moved, every mask is checked at no cost to the device.
        """
        mask = batch["mask"]
        shape, dtype = tuple(mask.shape), mask.dtype
        if self.mode == "multilabel":
            if mask.ndim != 4 or shape[1] != self.num_classes or dtype not in (torch.bool, torch.uint8):
                raise UserError(
                    f"A multilabel mask is bool or uint8 of shape (B, {self.num_classes}, H, W), one map per class;"
                    f" this one is {dtype} {shape}."
                )
            low, high, legal = 0, 1, "multilabel masks hold 0 and 1"
        elif self.mode == "binary" and mask.is_floating_point():
            if mask.ndim != 4 or shape[1] != 1:
                raise UserError(f"A soft mask is float of shape (B, 1, H, W); this one is {dtype} {shape}.")
            low, high, legal = 0, 1, "soft masks hold 0 to 1; divide by the largest value"
        else:
            if mask.ndim != 3 or dtype != torch.int64:
                soft = ", or soft float (B, 1, H, W)" if self.mode == "binary" else ""
                raise UserError(f"A {self.mode} mask is int64 ids (B, H, W){soft}; this one is {dtype} {shape}.")
            low, high = 0, max(self.num_classes - 1, 1)
            legal = f"{self.mode} masks hold the class ids 0 to {high}; map its values in the data card (`values:`)"
        if mask.device.type != "cpu" or dtype == torch.bool:
            return
        good = (mask >= low) & (mask <= high)
        if self.ignore_index is not None and self.mode != "multilabel":
            good |= mask == self.ignore_index
            legal += f", or use ignore_index ({self.ignore_index}) for pixels that do not count"
        if not good.all():
            raise UserError(f"A mask holds the value {mask[~good][0].item():g}, but {legal}.")

    def check_weights(self, weights: Mapping[str, float], decoder_losses: Iterable[str] = ()) -> None:
        """Raise UserError where `weights` names a loss that is unknown or unsuitable here, or has no proper weight.

        decoder_losses: names of the losses that the decoder computes itself.
        """
        known = [*TERMS[self.mode], "main", "aux", *decoder_losses]
        for name, value in weights.items():
            if name not in known:
                elsewhere = any(name in terms for terms in TERMS.values())
                wrong = f"The loss {name!r} does not suit a {self.mode} task" if elsewhere else f"No loss {name!r} here"
                near = "" if elsewhere else nearest(name, known)
                raise UserError(f"{wrong}{near}; choose from {', '.join(known)}, or take the default (--loss null).")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise UserError(f"The weight of the loss {name!r} must be a number from 0 up, not {value!r}.")

    def check_class_weights(self, class_weights: Sequence[float], weights: Mapping[str, float] | None = None) -> None:
        """Raise UserError where class weights do not fit: one for each class, in binary background and foreground.

        weights: of the loss's terms; one of them has to take class weights. Multilabel has none: a pixel may be of
        several classes, and of each of them foreground or not.
        """
        if self.mode == "multilabel":
            raise UserError(
                "class_weights are for classes of which a pixel has one, and in multilabel it may have several; take"
                " --class_weights null."
            )
        number = max(self.num_classes, 2)
        if len(class_weights) != number:
            what = "background and foreground" if self.mode == "binary" else "one for each class"
            raise UserError(f"class_weights has {len(class_weights)} entries; give {number}, {what}.")
        if not all(0 <= value < math.inf for value in class_weights) or not any(class_weights):
            raise UserError(f"class_weights are numbers from 0 up, not all of them 0; not {list(class_weights)}.")
        active = self._active(weights or {})
        if not any(active.get(name) for name in WEIGHED):
            raise UserError(
                f"class_weights weigh {', '.join(WEIGHED)}, but the loss is {', '.join(active)}; name one of these in"
                " `loss`, or take --class_weights null."
            )

    def _active(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The loss terms that count, with their weights."""
        return {name: weights[name] for name in TERMS[self.mode] if name in weights} or DEFAULT_LOSS[self.mode]

    def _check_logits(self, logits: Tensor, mask: Tensor) -> None:
        if logits.shape[1] != self.num_outputs:
            raise UserError(f"The logits have {logits.shape[1]} channels, but the task has {self.num_outputs} classes.")
        if mask.shape[0] != logits.shape[0] or mask.shape[-2:] != logits.shape[-2:]:
            raise UserError(
                f"The mask (B, height, width) is {(mask.shape[0], *mask.shape[-2:])}, but the logits are"
                f" {(logits.shape[0], *logits.shape[-2:])}; give the mask the image's size."
            )

    def _check_classes(self) -> None:
        for option, values in (("class_names", self.class_names), ("class_colors", self.class_colors)):
            if values is not None and len(values) != self.num_classes:
                hint = " (the foreground's alone)" if self.mode == "binary" else ""
                raise UserError(
                    f"{option} has {len(values)} entries, but there must be one for each of num_classes ="
                    f" {self.num_classes}{hint}."
                )
        names = self.class_names or ()
        if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise UserError(f"class_names must be texts that differ from each other, not {list(names)!r}.")
        for color in self.class_colors or ():
            if len(color) != 3 or not all(_is_int(value) and 0 <= value <= 255 for value in color):
                raise UserError(f"A class color is red, green, blue, each from 0 to 255, not {list(color)!r}.")


def _log_mean(logs: Sequence[Tensor]) -> Tensor:
    """log(mean(exp(x))), over a list."""
    return reduce(torch.logaddexp, logs) - math.log(len(logs))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_threshold(threshold: float) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, Real) or not 0 <= threshold <= 1:
        raise UserError(f"threshold is a probability from 0 to 1, not {threshold!r}.")


def _no_threshold(threshold: float) -> str:
    return f"threshold = {threshold} has no meaning in multiclass, where the most probable class wins; leave it out."
