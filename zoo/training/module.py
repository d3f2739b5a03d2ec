"""The one LightningModule: a model, its task's loss, its metrics, an optimiser of torch.optim and a schedule."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric, MetricCollection

from zoo.errors import UserError, nearest
from zoo.model import Model
from zoo.training.keys import Optimizer, Scheduler
from zoo.training.loader import Batch, processes


class Training(LightningModule):
    """Trains `model` on its task's loss and measures `model.answer`.

    weights: of the loss's terms, None = the task's own. metrics: of torchmetrics, one or a collection, whose update
    takes (answer, batch). After a training epoch `terms` holds the mean of every loss term; after an evaluation
    `scores` holds the metrics and `images` the number of images measured.
    """

    def __init__(
        self,
        model: Model,
        metrics: Metric | MetricCollection,
        *,
        weights: Mapping[str, float] | None = None,
        optimizer: Optimizer | None = None,
        scheduler: Scheduler | None = None,
    ):
        super().__init__()
        self.model, self.metrics = model, metrics
        self.weights, self.optimizer, self.scheduler = weights, optimizer or Optimizer(), scheduler or Scheduler()
        self.terms: dict[str, float] = {}
        self.scores: dict[str, float] = {}
        self.images = 0
        self._names: list[str] = []
        self._sums: Tensor | None = None  # on the device: a step never waits for a number
        self._last: Tensor | None = None

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer.training and self.device.type != "cpu":  # on the CPU the loss itself looks at every mask
            self.model.task.check(batch)
        return batch

    def training_step(self, batch: Batch, index: int) -> Tensor:
        outputs = self.model(batch["image"], **self._inputs(batch))
        own = getattr(self.model.decoder, "loss_weights", None)
        terms: dict[str, Tensor] = self.model.task.loss(outputs, batch, self.weights, decoder_weights=own)
        values, count = torch.stack([value.detach().float() for value in terms.values()]), len(batch["image"])
        if self._sums is None:
            self._names, self._sums = list(terms), values.new_zeros(len(values) + 1)
        self._sums[:-1] += values * count
        self._sums[-1] += count
        self._last = terms["loss"].detach()
        return terms["loss"]

    def mean_loss(self) -> float:
        """The training loss's mean over the epoch so far, on this process; waits for the device."""
        return math.nan if self._sums is None else (self._sums[self._names.index("loss")] / self._sums[-1]).item()

    def on_train_epoch_start(self) -> None:
        self._sums, self.terms, self.scores = None, {}, {}

    def reduce_terms(self) -> None:
        """Fill `terms` from the epoch's steps of all processes; called once by each of them.

        Not `on_train_epoch_end`: Lightning calls a module's hook after those of the callbacks that need the terms.
        Raises UserError where the loss has become infinite or not a number.
        """
        if self._sums is None or self._last is None:
            return
        wrong = (~torch.isfinite(self._last)).to(self._sums)  # on any process: all are to stop, or none
        reduced = torch.cat([self._sums, wrong[None]])
        if processes()[1] > 1:
            torch.distributed.all_reduce(reduced)
        *sums, count, failed = reduced.tolist()
        if failed:
            raise UserError(
                f"The loss is infinite or not a number at the end of epoch {self.current_epoch + 1};"
                f" lower optimizer.lr (now {self.optimizer.lr:g}) or set --trainer.gradient_clip_val 1."
            )
        self.terms = {name: value / count for name, value in zip(self._names, sums, strict=True)}

    def validation_step(self, batches: list[Batch], index: int) -> None:
        for batch in batches:
            with torch.autocast(self.device.type, enabled=False):  # training may be 16-mixed, measuring never is
                answer = self.model.answer(batch["image"], **self._inputs(batch))
            self.metrics.update(answer, batch)
            self.images += len(batch["image"])

    def on_validation_epoch_start(self) -> None:
        self.metrics.reset()
        self.images = 0

    def on_validation_epoch_end(self) -> None:
        self.scores = {name: float(value) for name, value in self.metrics.compute().items()}
        if processes()[1] > 1:
            images = torch.tensor(self.images, device=self.device)
            torch.distributed.all_reduce(images)
            self.images = int(images)

    def test_step(self, batches: list[Batch], index: int) -> None:
        self.validation_step(batches, index)

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def configure_optimizers(self) -> Any:
        optimizer = create_optimizer([p for p in self.model.parameters() if p.requires_grad], self.optimizer)
        factor, interval = create_schedule(self.scheduler, steps=self.trainer.estimated_stepping_batches)
        schedule = {"scheduler": LambdaLR(optimizer, factor), "interval": interval}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        task = self.model.task
        return {name: batch[name] for name in (*task.planes, *task.prompts) if name in batch}


def create_optimizer(parameters: Iterable[nn.Parameter], optimizer: Optimizer) -> torch.optim.Optimizer:
    """The optimiser of torch.optim with that name, in any case; an option it doesn't take is a UserError."""
    classes = {
        name.lower(): found
        for name, found in vars(torch.optim).items()
        if isinstance(found, type) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer
    }
    name = optimizer.name.lower()
    if name not in classes:
        raise UserError(
            f"There is no optimiser {optimizer.name!r} in torch.optim{nearest(name, classes) or '.'}"
            f" It has: {', '.join(sorted(classes))}."
        )
    parameters = list(parameters)
    if not parameters:
        raise UserError("The model has no trainable parameters; unfreeze its encoder or its decoder.")
    try:
        return classes[name](parameters, **optimizer.options())
    except (TypeError, ValueError) as error:
        options = ", ".join(f"{key} {value}" for key, value in optimizer.options().items())
        raise UserError(f"The optimiser {optimizer.name!r} does not take {options}: {error}.") from None


def create_schedule(scheduler: Scheduler, *, steps: float) -> tuple[Callable[[int], float], str]:
    """(share of the initial lr as a function of the count, what is counted: "step" or "epoch").

    steps: optimiser steps in the whole training, infinite where nobody knows, which only constant without a warm-up
    and step can take (else a UserError); the warm-up takes at most half of them. cosine and poly fall from 1 to
    `final` with every step; the step schedule is gamma ** (epoch // every), always from the initial lr. (PraNet's code
    multiplies the current one at every epoch from `every` on; within its 19 epochs that is the same.)
    """
    name, warmup = scheduler.name, min(scheduler.warmup, steps // 2) if scheduler.warmup else 0
    if name not in ("constant", "cosine", "poly", "step"):
        raise UserError(f"There is no scheduler {name!r}{nearest(name, ('constant', 'cosine', 'poly', 'step')) or '.'}")
    if name == "step":
        if scheduler.warmup:
            raise UserError(f"scheduler.warmup is {scheduler.warmup}, but the step schedule has none; set it to 0.")
        return lambda epoch: float(scheduler.gamma ** (epoch // scheduler.every)), "epoch"
    if math.isinf(steps) and (name != "constant" or scheduler.warmup):
        what = f"scheduler.warmup is {scheduler.warmup}" if name == "constant" else f"scheduler.name is {name}"
        raise UserError(
            f"{what}, which needs the number of steps, but the trainer bounds neither epochs nor steps; set"
            " trainer.max_epochs or trainer.max_steps, or --scheduler.name constant --scheduler.warmup 0."
        )

    def factor(step: int) -> float:
        if step < warmup:
            return float((step + 1) / (warmup + 1))
        if name == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        fall = (1 + math.cos(math.pi * progress)) / 2 if name == "cosine" else (1 - progress) ** scheduler.power
        return float(scheduler.final + (1 - scheduler.final) * fall)

    return factor, "step"
