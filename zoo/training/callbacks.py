"""What happens beside the training: the progress a person sees, the two tables, and the best checkpoint.

Lightning calls callbacks in the order given: Tables (which closes the epoch's sums), Keep, Show. What a resumed
training has to know is in their `state_dict`.
"""

import csv
import hashlib
import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zoo.checkpoints.folder import WEIGHTS
from zoo.files import aside
from zoo.metrics import LESS_IS_BETTER
from zoo.training.loader import processes

METRICS, TIMINGS = "metrics.csv", "timings.csv"


class Tables(Callback):
    """A row per epoch in metrics.csv, in which no clock stands, and in timings.csv.

    metrics.csv: epoch, step (optimiser steps so far), lr (of the last step; of all but the backbone), train/<loss term>
    (a mean over the images) and val/<metric>. Loggers get the same rows.
    timings.csv: epoch, images (once for each rate), train_seconds, val_seconds, images_per_second (of training alone)
    and waiting: the share of train_seconds without a batch, from the end of a step to the start of the next.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder  # None: another process writes
        self.metrics: list[dict[str, Any]] = []
        self.timings: list[dict[str, Any]] = []
        self.rate = 0.0
        self._reset(0.0)

    def _reset(self, now: float) -> None:
        self.now, self.images, self.training, self.waiting, self.measuring = now, 0, 0.0, 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        sums = (self.images, self.training, self.waiting, self.measuring)  # of the epoch so far
        return {"metrics": self.metrics, "timings": self.timings, "sums": sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.metrics, self.timings = list(state_dict["metrics"]), list(state_dict["timings"])
        self.images, self.training, self.waiting, self.measuring = state_dict["sums"]

    def _lap(self) -> float:
        before, self.now = self.now, time.perf_counter()
        return self.now - before

    @property
    def images_per_second(self) -> float:
        """Of all processes, in this epoch so far."""
        return self.images * processes()[1] / self.training if self.training else 0.0

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.now = time.perf_counter()  # resumed, the epoch's start is long ago

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self._reset(time.perf_counter())

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
        lap = self._lap()
        self.waiting += lap
        self.training += lap
        self.rate = trainer.optimizers[0].param_groups[0]["lr"]  # schedules move it on before the step's end

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.images += len(batch["image"])
        self.training += self._lap()

    def on_validation_start(self, trainer: Trainer, module: Any) -> None:
        if module.device.type == "cuda":  # steps still under way belong to the training
            torch.cuda.synchronize(module.device)
        self.training += self._lap()

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        self.measuring += self._lap()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        module.reduce_terms()  # waits for the device
        self.training += self._lap()
        epoch = trainer.current_epoch + 1
        self.metrics.append(
            {"epoch": epoch, "step": trainer.global_step, "lr": self.rate}
            | {f"train/{name}": value for name, value in module.terms.items()}
            | {f"val/{name}": value for name, value in module.scores.items()}
        )
        for logger in trainer.loggers:
            logger.log_metrics(self.metrics[-1], step=trainer.global_step)
        self.timings.append(
            {
                "epoch": epoch,
                "images": self.images * processes()[1],
                "train_seconds": self.training,
                "val_seconds": self.measuring,
                "images_per_second": self.images_per_second,
                "waiting": self.waiting / self.training,
            }
        )
        if self.folder:
            write_table(self.folder / METRICS, self.metrics, digits=9)
            write_table(self.folder / TIMINGS, self.timings, digits=4)


def write_table(path: Path, rows: list[dict[str, Any]], *, digits: int) -> None:
    """Write rows as CSV, aside and then renamed; a row without a column has an empty cell there."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with aside(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            cells = [row.get(name, "") for name in columns]
            writer.writerow([f"{cell:.{digits}g}" if isinstance(cell, float) else cell for cell in cells])


class Keep(Callback):
    """Saves the model after each epoch whose `monitor` is the best so far, or after every epoch.

    monitor: a validation metric, more of which is better unless it is in LESS_IS_BETTER; None = every epoch, so that
    the last one stays. epoch, score: of what is saved. Where a resumed training finds another model than the one it
    knows, saved by an epoch that is trained once more, the next epoch's takes its place. tables: where a training that
    is resumed with another monitor finds the kept epoch's score.
    """

    def __init__(self, folder: Path | None, monitor: str | None, tables: Tables | None = None):
        self.folder, self.monitor, self.tables = folder, monitor, tables
        self.epoch: int | None = None
        self.score = math.nan
        self.saved = ""  # the checksum of the file

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "score": self.score, "saved": self.saved, "monitor": self.monitor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """After that of the tables."""
        self.epoch, self.score, self.saved = state_dict["epoch"], state_dict["score"], state_dict["saved"]
        if state_dict.get("monitor", self.monitor) != self.monitor:  # scores of two metrics can't be compared
            rows = self.tables.metrics if self.tables else []
            self.score = next(
                (row.get(f"val/{self.monitor}", math.nan) for row in rows if row["epoch"] == self.epoch), math.nan
            )

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if self.folder and self.epoch is not None and self.saved != _checksum(self.folder / WEIGHTS):
            self.score = math.nan

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        score = math.nan if self.monitor is None else module.scores.get(self.monitor, math.nan)
        # an epoch without a score is worse than any with one, and gives way to the next
        better = score < self.score if self.monitor in LESS_IS_BETTER else score > self.score
        if self.monitor is None or math.isnan(self.score) or better:
            self.epoch, self.score = trainer.current_epoch + 1, score
            if self.folder:
                module.kept.save(self.folder)
                self.saved = _checksum(self.folder / WEIGHTS)


def _checksum(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Show(Callback):
    """The progress a person sees: a bar on a terminal, else a plain line every `every` seconds; a line per epoch."""

    def __init__(self, console: Console, tables: Tables, keep: Keep, *, every: float = 30.0):
        self.console, self.tables, self.keep, self.every = console, tables, keep, every
        self.bar: Progress | None = None
        self.began = self.said = 0.0
        self.before = (0, 0)  # epochs and steps of a training before it was resumed

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.began = self.said = time.perf_counter()
        self.before = (trainer.current_epoch, trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self._start(f"epoch {trainer.current_epoch + 1}{_of(trainer.max_epochs)}", trainer.num_training_batches)

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        done, total = index + 1, trainer.num_training_batches
        if not self.bar:  # resumed in the midst of an epoch
            self._start(f"epoch {trainer.current_epoch + 1}{_of(trainer.max_epochs)}", total)
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=done)
        if not self._due(1.0 if self.bar else self.every) or done == total:
            return
        facts = f"loss {module.mean_loss():.4f}, {self.tables.images_per_second:.3g} images/s"
        if self.bar:
            self.bar.update(self.bar.task_ids[0], facts=facts)
        else:
            epoch = f"epoch {trainer.current_epoch + 1}{_of(trainer.max_epochs)}"
            self.console.print(f"{epoch}, step {done}/{total}: {facts}")

    def on_validation_start(self, trainer: Trainer, module: Any) -> None:
        self._start("validation", sum(int(n) for n in trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: Trainer, module: Any, *rest: Any) -> None:
        self._measured(module, "validation")

    def on_test_start(self, trainer: Trainer, module: Any) -> None:
        self.said = time.perf_counter()
        self._start("test", sum(int(n) for n in trainer.num_test_batches))

    def on_test_batch_end(self, trainer: Trainer, module: Any, *rest: Any) -> None:
        self._measured(module, "test")

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self._stop()
        if self.tables.metrics:
            self.console.print(self._epoch(trainer, module))
        self.said = time.perf_counter()

    def on_test_end(self, trainer: Trainer, module: Any) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        self._stop()

    def _epoch(self, trainer: Trainer, module: Any) -> str:
        row, timing = self.tables.metrics[-1], self.tables.timings[-1]
        facts = [f"loss {row.get('train/loss', math.nan):.4f}"]
        if name := self.keep.monitor if self.keep.monitor in module.scores else next(iter(module.scores), None):
            best = " (best so far)" if self.keep.monitor and self.keep.epoch == row["epoch"] else ""
            facts.append(f"{name} {module.scores[name]:.4f}{best}")
        facts.append(f"{timing['images_per_second']:.3g} images/s")
        facts.append(clock(timing["train_seconds"] + timing["val_seconds"]))
        left = _left(trainer, time.perf_counter() - self.began, self.before)
        if 0 < left < math.inf:
            facts.append(f"about {clock(left)} left")
        return f"epoch {row['epoch']}{_of(trainer.max_epochs)}: {', '.join(facts)}"

    def _measured(self, module: Any, what: str) -> None:
        if self.bar:
            self.bar.advance(self.bar.task_ids[0])
        elif self._due(self.every):
            self.console.print(f"{what}: {module.images} images measured")

    def _start(self, what: str, total: float) -> None:
        self._stop()
        if not self.console.is_terminal:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        facts = TextColumn("{task.fields[facts]}")
        self.bar = Progress(*columns, facts, console=self.console, transient=True, refresh_per_second=4)
        self.bar.add_task(what, total=None if math.isinf(total) else total, facts="")
        self.bar.start()

    def _stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _due(self, every: float) -> bool:
        if (now := time.perf_counter()) - self.said < every:
            return False
        self.said = now
        return True


def clock(seconds: float) -> str:
    """ "0.4 s", "41 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _left(trainer: Trainer, elapsed: float, before: tuple[int, int] = (0, 0)) -> float:
    """Seconds to the first of the bounds on epochs, steps and time, at the speed so far; infinite without any.

    before: epochs and steps that `elapsed` doesn't cover.
    """
    done, bounds = (trainer.current_epoch + 1, trainer.global_step), (trainer.max_epochs, trainer.max_steps)
    left = [
        elapsed / (now - was) * (bound - now)
        for now, was, bound in zip(done, before, bounds, strict=True)
        if now > was and bound is not None and bound > 0
    ]
    left += [t.time_remaining() or 0.0 for t in trainer.callbacks if isinstance(t, Timer)]  # type: ignore[attr-defined]
    return min(left, default=math.inf)


def _of(total: int | None) -> str:
    return f"/{total}" if total and total > 0 else ""
