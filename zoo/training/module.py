"""The one LightningModule: a model, its task's loss, its metrics, an optimiser of torch.optim and a schedule."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric, MetricCollection

from zoo.metrics.images import ImageCounts
from zoo.model import Model
from zoo.training.average import Average
from zoo.training.compiled import compiled
from zoo.training.keys import Optimizer, Scheduler
from zoo.training.loader import Batch, processes
from zoo.training.optim import create_optimizer, create_schedule
from zoo.training.unreadable import found_in


class Training(LightningModule):
    """Trains `model` on its task's loss and measures `model.answer`.

    weights: of the loss's terms, None = the task's own; class_weights: what `task.loss` makes of them. metrics: of
    torchmetrics, one or a collection, whose update takes (answer, batch). ema: decay of a running average of the
    weights, which then is what validation measures; a test measures `model`. channels_last, compile: how the model is
    run in training.
    After a training epoch `terms` holds the mean of every loss term; after an evaluation `scores` holds the metrics and
    `images` the number of images measured, `unread` the paths of those that could not be read, with the reason;
    `split` names what a test measures. `latest` holds the last step's terms: their names, and values (terms,).
    counter: what a test counts beside the metrics; `counted` holds that.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        model: Model,
        metrics: Metric | MetricCollection,
        *,
        weights: Mapping[str, float] | None = None,
        optimizer: Optimizer | None = None,
        scheduler: Scheduler | None = None,
        class_weights: Sequence[float] | None = None,
        ema: float | None = None,
        channels_last: bool = False,
        compile: bool = False,
    ):
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model, self.metrics = model.to(memory_format=self.memory_format), metrics
        self.average = Average(self.model, ema) if ema else None
        self.compiled = compiled(self.model) if compile else None
        given = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", given, persistent=False)
        self.weights, self.optimizer, self.scheduler = weights, optimizer or Optimizer(), scheduler or Scheduler()
        self.terms: dict[str, float] = {}
        self.scores: dict[str, float] = {}
        self.images = 0
        self.counter: ImageCounts | None = None
        self.counted: dict[str, Tensor] | None = None
        self.unread: dict[str, str] = {}
        self.split = "test"
        self.latest: tuple[list[str], Tensor] = ([], torch.empty(0))
        self._names: list[str] = []
        self._sums: Tensor | None = None  # on the device: a step never waits for a number

    @property
    def kept(self) -> Model:
        """What a checkpoint of this training is to hold: the average where there is one, else the model."""
        return self.average.model if self.average else self.model  # type: ignore[return-value]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer.training and self.device.type != "cpu":  # on the CPU the loss itself looks at every mask
            self.model.task.check(batch)
        return batch

    def training_step(self, batch: Batch, index: int) -> Tensor:
        run = self.compiled or self.model
        outputs = run(batch["image"].contiguous(memory_format=self.memory_format), **self._inputs(batch))
        own = getattr(self.model.decoder, "loss_weights", None)
        options = {} if self.class_weights is None else {"class_weights": self.class_weights}
        terms: dict[str, Tensor] = self.model.task.loss(outputs, batch, self.weights, decoder_weights=own, **options)
        values, count = torch.stack([value.detach().float() for value in terms.values()]), len(batch["image"])
        if self._sums is None or self._names != list(terms):
            self._names, self._sums = list(terms), values.new_zeros(len(values) + 1)
        counts = values.isfinite().all() * count  # a step without a loss counts as none
        self._sums[:-1] += values.nan_to_num(posinf=0.0, neginf=0.0) * counts
        self._sums[-1] += counts
        self.latest = (self._names, values)
        if self.trainer.loggers:
            self.log("step/loss", terms["loss"].detach())
        return terms["loss"]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average:
            self.average.update(self.model, self.trainer.global_step + 1)  # this one is counted after this hook

    def mean_loss(self) -> float:
        """The training loss's mean over the epoch so far, on this process; waits for the device."""
        return math.nan if self._sums is None else (self._sums[self._names.index("loss")] / self._sums[-1]).item()

    def on_train_epoch_start(self) -> None:
        self._sums, self.terms, self.scores = None, {}, {}

    def reduce_terms(self) -> None:
        """Fill `terms` from the epoch's steps of all processes; called once by each of them.

        Not `on_train_epoch_end`: Lightning calls a module's hook after those of the callbacks that need the terms.
        """
        if self._sums is None:
            return
        reduced = self._sums.clone()
        if processes()[1] > 1:
            torch.distributed.all_reduce(reduced)
        *sums, count = reduced.tolist()
        self.terms = {name: value / count if count else math.nan for name, value in zip(self._names, sums, strict=True)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Every process's sums of the epoch so far."""
        sums = None if self._sums is None else self._sums[None]
        if sums is not None and processes()[1] > 1:
            every = [torch.empty_like(sums) for _ in range(processes()[1])]
            torch.distributed.all_gather(every, sums)
            sums = torch.cat(every)
        checkpoint["terms"] = {"names": self._names, "sums": sums}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._names, sums = checkpoint["terms"]["names"], checkpoint["terms"]["sums"]
        if sums is not None:
            rank = processes()[0]
            self._sums = sums[rank] if rank < len(sums) else torch.zeros_like(sums[0])

    def on_train_start(self) -> None:
        if self._sums is not None:
            self._sums = self._sums.to(self.device)  # a resumed epoch's come from the CPU

    def validation_step(self, batches: list[Batch], index: int) -> None:
        self._measure(self.kept, batches)

    def on_validation_epoch_start(self) -> None:
        self.metrics.reset()
        self.images = 0
        self.unread = {}

    def on_validation_epoch_end(self) -> None:
        self.scores = {name: float(value) for name, value in self.metrics.compute().items()}
        if processes()[1] > 1:
            images = torch.tensor(self.images, device=self.device)
            torch.distributed.all_reduce(images)
            self.images = int(images)
        if not self.trainer.testing:  # where early stopping looks
            self.log_dict({f"val/{name}": value for name, value in self.scores.items()}, logger=False)

    def test_step(self, batches: list[Batch], index: int) -> None:
        self._measure(self.model, batches, self.counter)

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()
        self.counted = None

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()
        if self.counter is not None:
            self.counted = self.counter.compute()

    def _measure(self, model: Model, batches: list[Batch], counter: ImageCounts | None = None) -> None:
        for batch in batches:
            if "image" not in batch:
                self.unread |= found_in(batch)
                continue
            with torch.autocast(self.device.type, enabled=False):  # training may be 16-mixed, measuring never is
                answer = model.answer(batch["image"], **self._inputs(batch))
            self.metrics.update(answer, batch)
            if counter is not None:
                counter.update(answer, batch)
            self.images += len(batch["image"])

    def configure_optimizers(self) -> Any:
        optimizer = create_optimizer(self.model, self.optimizer)
        factor, interval = create_schedule(self.scheduler, steps=self.trainer.estimated_stepping_batches)
        schedule = {"scheduler": LambdaLR(optimizer, factor), "interval": interval}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        task = self.model.task
        return {name: batch[name] for name in (*task.planes, *task.prompts) if name in batch}
