"""What is watched in a training: images that can't be read, losses that are no numbers, weights that never learn.

Several processes go on or stop together: each tells the others of its trouble where the next batch begins.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from torch import Tensor

from zoo.errors import UserError
from zoo.training.finite import Loss, Losses, few
from zoo.training.keys import Recipe
from zoo.training.loader import Batch, processes
from zoo.training.unreadable import found_in, told, too_many

BAD_BATCH = "bad_batch"  # .safetensors; of further processes with their number
IN_A_ROW = 10  # skipped steps, after which it is no accident
FIRST = 3  # optimiser steps in which every weight should have met a gradient


class Guard(Callback):
    """Ends a training, or lets it go on without a sample or a step, as the recipe's on_error and on_nan say.

    Stands before all callbacks that save something. folder: of the run, known to the first process alone. unread: split
    -> {path: sentence} of what could not be read; dropped: steps left out; idle: names of weights without a gradient.
    """

    def __init__(self, recipe: Recipe, console: Console, folder: Path | None = None):
        self.recipe, self.console, self.folder = recipe, console, folder
        self.unread: dict[str, dict[str, str]] = {}
        self.dropped: list[int] = []
        self.idle: list[str] | None = None
        self.losses = Losses()
        self.known = 0  # unreadable training images that all processes know of
        self.trouble = ""
        self.missing: set[str] = set()
        self.steps = 0  # of this process's optimiser, up to FIRST
        self.bad = False  # the step under way
        self.buffers: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"unread": self.unread, "dropped": self.dropped, "idle": self.idle}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.unread, self.dropped = state_dict["unread"], list(state_dict["dropped"])
        self.idle = state_dict["idle"]

    def on_save_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """No state is written of weights that a bad loss, not looked at yet, has spoiled."""
        self._look(wait=True)
        self._agree(trainer, module)

    def told(self, *splits: str) -> list[str]:
        """What the run's report says of these splits and, where train is one of them, of the steps and weights."""
        lines = [told(self.unread[split], split) for split in splits if self.unread.get(split)]
        if "train" not in splits:
            return lines
        if self.dropped:
            steps = "1 step was" if len(self.dropped) == 1 else f"{len(self.dropped)} steps were"
            lines.append(f"{steps} left out, since the loss was no number: {few(self.dropped)}.")
        return lines + ([_without_gradient(self.idle)] if self.idle else [])

    def facts(self) -> dict[str, Any]:
        """The same for run.json."""
        unread = {split: some for split, some in self.unread.items() if some}
        found = {"unreadable": unread, "dropped_steps": self.dropped, "without_gradient": self.idle}
        return {key: value for key, value in found.items() if value}

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        folder = trainer.strategy.broadcast(str(self.folder or ""))
        self.folder = Path(folder) if folder else None

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Batch, index: int) -> None:
        self.batch = batch
        if found := found_in(batch):
            self.unread.setdefault("train", {}).update(found)
        self._agree(trainer, module)
        if self.recipe.on_nan == "skip" and not self.buffers:
            self.buffers = [buffer.clone() for buffer in module.model.buffers()]

    def on_before_backward(self, trainer: Trainer, module: Any, loss: Tensor) -> None:
        names, values = module.latest
        self.losses.add((trainer.current_epoch + 1, trainer.global_step + 1), names, values, self.batch)
        self._look(wait=self.recipe.on_nan == "skip")

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        if self.recipe.on_nan == "skip":
            self._leave_out(trainer, module, optimizer)
        ddp = isinstance(trainer.strategy, DDPStrategy)
        if self.idle is None and not self.bad and (ddp or processes()[1] == 1):  # others cut weights into pieces
            self._find_idle(trainer, module)
        self.bad = False

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self._look(wait=True)
        self._agree(trainer, module)
        if found := self.unread.get("train"):
            self.console.print(told(found, "train"))

    def on_validation_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, *indices: int) -> None:
        self._measured(trainer, module, trainer.val_dataloaders)

    def on_test_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, *indices: int) -> None:
        self._measured(trainer, module, trainer.test_dataloaders)

    def on_validation_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self._end_measuring(module, "val", trainer.val_dataloaders)

    def on_test_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self._end_measuring(module, module.split, trainer.test_dataloaders)

    def _measured(self, trainer: Trainer, module: Any, loader: Any) -> None:
        if trainer.world_size == 1 and (why := too_many(module.unread, len(loader.dataset), self.recipe.data)):
            raise UserError(why)

    def _end_measuring(self, module: Any, split: str, loader: Any) -> None:
        """All processes are here: what one of them has found counts for all."""
        self.unread[split] = module.unread
        found = self._gather(split)
        if why := too_many(found, len(loader.dataset), self.recipe.data):
            raise UserError(why)
        if found:
            self.console.print(told(found, split))

    def _gather(self, split: str) -> dict[str, str]:
        every = _gathered(self.unread.get(split, {}))
        self.unread[split] = dict(sorted({path: why for found in every for path, why in found.items()}.items()))
        return self.unread[split]

    def _agree(self, trainer: Trainer, module: Any) -> None:
        """Raise on every process where one has a trouble, or where together they have skipped too many."""
        news = len(self.unread.get("train", {})) - self.known + bool(self.trouble)
        if processes()[1] > 1:
            every = torch.tensor(news, device=module.device)
            torch.distributed.all_reduce(every)
            news = int(every)
        if not news:
            return
        found = self._gather("train")
        self.known = len(found)
        loader: Any = trainer.train_dataloader
        trouble = next(filter(None, _gathered(self.trouble)), None)
        if why := trouble or too_many(found, len(loader.dataset), self.recipe.data):
            raise UserError(why)

    def _look(self, *, wait: bool) -> None:
        loss = self.losses.first_wrong(wait=wait)
        if loss is None or self.trouble:
            return
        if self.recipe.on_nan == "skip":
            self.bad = True
            if len(self.dropped) < IN_A_ROW:
                self._keep(loss)
            return
        self.trouble = loss.sentence(self.recipe.optimizer.lr, self._keep(loss))
        if processes()[1] == 1:
            raise UserError(self.trouble)

    def _leave_out(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        bad = torch.tensor(self.bad, device=module.device, dtype=torch.int32)
        if processes()[1] > 1:
            torch.distributed.all_reduce(bad)
        self.bad = bool(bad)
        if self.bad:
            if getattr(trainer.precision_plugin, "scaler", None) is None:  # it leaves such a step out by itself
                optimizer.zero_grad()  # to None, which every optimiser passes over
            for buffer, before in zip(module.model.buffers(), self.buffers, strict=True):
                buffer.copy_(before)  # running means have met the batch
            step = trainer.global_step + 1
            self.dropped.append(step)
            self.console.print(f"Step {step} is left out: its loss is no number.")
            if self.dropped[-IN_A_ROW:] == list(range(step - IN_A_ROW + 1, step + 1)):
                raise UserError(
                    f"The loss is no number in {IN_A_ROW} steps in a row, up to step {step}; lower"
                    f" optimizer.lr (now {self.recipe.optimizer.lr:g}) or look at {self._bad_batch()}."
                )
        self.buffers = []

    def _find_idle(self, trainer: Trainer, module: Any) -> None:
        """Note which weights have met no gradient in the first steps; several processes can't go on with any."""
        missing = {name for name, p in module.model.named_parameters() if p.requires_grad and p.grad is None}
        self.missing = missing & self.missing if self.steps else missing
        self.steps += 1
        options = getattr(trainer.strategy, "_ddp_kwargs", {})
        if self.missing and processes()[1] > 1 and not options.get("find_unused_parameters"):
            raise UserError(
                f"{_without_gradient(sorted(self.missing))} Several processes wait for them:"
                " set --trainer.strategy ddp_find_unused_parameters_true, or freeze them."
            )
        if self.steps == FIRST:
            self.idle = [name for name, _ in module.model.named_parameters() if name in self.missing]
            if self.idle:
                self.console.print(f"Note: {_without_gradient(self.idle)}")

    def _bad_batch(self) -> Path:
        rank = processes()[0]
        return (self.folder or Path()) / f"{BAD_BATCH}{f'.{rank}' if rank else ''}.safetensors"

    def _keep(self, loss: Loss) -> str:
        """Save the batch in the run's folder; the sentence on it."""
        return loss.save(self._bad_batch()) if self.folder else ""


def _gathered(value: Any) -> list[Any]:
    """The value of every process, on every process."""
    world = processes()[1]
    if world == 1:
        return [value]
    every: list[Any] = [None] * world
    torch.distributed.all_gather_object(every, value)
    return every


def _without_gradient(names: Iterable[str]) -> str:
    """The sentence on weights that don't learn, by the module they belong to."""
    groups: dict[str, int] = {}
    for name in names:
        group = ".".join(name.split(".")[:-1][:3])
        groups[group] = groups.get(group, 0) + 1
    some = few(f"{group} ({number})" for group, number in groups.items())
    return f"{sum(groups.values())} of the model's weights get no gradient and stay as they are: {some}."
