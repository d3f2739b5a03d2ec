"""What a training needs to go on exactly where it stopped: runs/<recipe>/<n>/state/<step>.ckpt.

A state is written where a batch begins, never where one ends: then the step before it, its validation and its epoch's
end are over, and Lightning's counters say so. It holds what Lightning saves (weights, optimiser, schedule, counters,
every callback's own state) and where in the data it is. Nothing random is in it: samples draw from (seed, epoch,
index) and models from (seed, step).
"""

import os
import random
import signal
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, Trainer

from zoo.errors import Terminated
from zoo.files import aside
from zoo.training.loader import begin, processes
from zoo.training.surroundings import create_console, one_line

STATE = "state"
KEPT = 2  # states, so that there is one to go back to


@dataclass(frozen=True)
class Past:
    """What a resumed training goes on from: its folder, a state, what is told of it, whether its recipe has changed."""

    folder: Path
    state: Path
    told: list[str]
    changed: bool


def find_state(run: Path) -> Path | None:
    """The newest state of a run that is whole; a cut or damaged one is passed over."""
    return next((path for path in reversed(_states(run / STATE)) if _is_whole(path)), None)


def newest(run: Path) -> int:
    """The step of a run's newest state, 0 where it has none."""
    return max((int(path.stem) for path in _states(run / STATE)), default=0)


def _states(folder: Path) -> list[Path]:
    """All states, oldest first."""
    return sorted((path for path in folder.glob("*.ckpt") if path.stem.isdigit()), key=lambda path: int(path.stem))


def _is_whole(path: Path) -> bool:
    """Whether every part of torch's file is there and has its checksum."""
    try:
        with zipfile.ZipFile(path) as parts:
            return parts.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


class Whole(CheckpointIO):
    """Files of states that are written aside, brought to the disk and then renamed; read without running pickles."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Where the disk is full or refuses, the training goes on without this state, and says so."""
        try:
            Path(path).parent.mkdir(exist_ok=True)
            with aside(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch has a RuntimeError for a file that takes no more
            create_console().print(
                f"The state {path} could not be written ({one_line(error)}); make room. The training goes on, and the"
                " states before it stay."
            )

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return dict(torch.load(path, map_location="cpu", weights_only=True))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class State(Callback):
    """Writes a state at the start of every epoch, every `every` optimiser steps, on a signal and at the end.

    Ctrl-C and SIGTERM let the step, and a validation under way, come to its end, write a state and then raise
    KeyboardInterrupt or Terminated on every process; a second signal raises at once. Also seeds what the model draws
    in a step (dropout and its kin) from (seed, step, process). folder: of the run; None = another process writes.
    changed: a resumed training keeps the recipe's optimiser options and schedule, not those of the state.
    """

    def __init__(self, folder: Path | None, loader: Any, *, every: int | None, seed: int, changed: bool = False):
        self.folder, self.loader, self.every, self.seed, self.changed = folder, loader, every, seed, changed
        self.saved = 0  # the newest state's step
        self.began = False
        self.place = (0, 0)  # epoch and batch of the newest state
        self.step = -1
        self.asked = 0  # the signal to stop, if one came
        self.handlers: dict[int, Any] = {}
        self.options: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        epoch, batch = self.place
        return {"step": self.saved, "epoch": epoch, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved, self.place = state_dict["step"], (state_dict["epoch"], state_dict["batch"])
        begin(self.loader, *self.place)

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        self.options = [
            {key: value for key, value in group.items() if key != "params"}
            for group in trainer.optimizers[0].param_groups
        ]

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.began = True
        if self.saved and not self.place[1]:
            self._begin_epoch(trainer)
        if self.changed:
            self._use_options(trainer)
        if self.folder:
            for path in (self.folder / STATE).glob("*.ckpt"):  # cut ones, and those after the one that was taken up
                if not path.stem.isdigit() or int(path.stem) > self.saved:
                    path.unlink()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self._ask)  # after an error the trainer puts them back

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
        step = trainer.global_step
        if index == 0 or step != self.step:  # no gradients wait for those of further batches
            self.step = step
            asked = self._asked_of_any(module)
            if step > self.saved and (asked or index == 0 or (self.every and step % self.every == 0)):
                self._save(trainer, index)
            if asked:
                raise Terminated if asked == signal.SIGTERM else KeyboardInterrupt
        seed = np.random.SeedSequence([self.seed, step, processes()[0], index]).generate_state(1)[0]
        torch.manual_seed(int(seed))
        np.random.seed(seed)
        random.seed(int(seed))

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        if trainer.global_step > self.saved:
            self._save(trainer, 0)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if asked := self._asked_of_any(module):
            raise Terminated if asked == signal.SIGTERM else KeyboardInterrupt

    def _save(self, trainer: Trainer, index: int) -> None:
        self.saved, self.place = trainer.global_step, (trainer.current_epoch, index)
        trainer.save_checkpoint((self.folder or Path()) / STATE / f"{self.saved}.ckpt")
        if self.folder:
            keep_newest(self.folder, KEPT)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.asked = number
        if number == signal.SIGINT and self.folder:
            os.write(2, b"\nStopping where the next step begins; Ctrl-C again stops at once.\n")

    def _asked_of_any(self, module: Any) -> int:
        if processes()[1] == 1:
            return self.asked
        asked = torch.tensor(self.asked, device=module.device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        return int(asked)

    def _begin_epoch(self, trainer: Trainer) -> None:
        """Let a whole epoch follow one that `max_steps` has cut: Lightning's count of batches stands in its midst."""
        batches = trainer.fit_loop.epoch_loop.batch_progress
        if 0 < batches.current.completed < trainer.num_training_batches:
            create_console().print(
                f"Epoch {trainer.current_epoch} ended after {batches.current.completed} of"
                f" {trainer.num_training_batches} batches; the next one is whole, so that this is not the training of"
                " more steps from the start."
            )
        batches.reset_on_run()

    def _use_options(self, trainer: Trainer) -> None:
        """Give the optimiser the recipe's options again, and the rate that its schedule has at this step."""
        for group, options in zip(trainer.optimizers[0].param_groups, self.options, strict=True):
            group.update(options)
        for config in trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            schedule.base_lrs = [group["initial_lr"] for group in schedule.optimizer.param_groups]
            for group, lr, factor in zip(
                schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
            ):
                group["lr"] = lr * factor(schedule.last_epoch)


def keep_newest(run: Path, number: int) -> int:
    """Remove all states of a run but the newest; returns the bytes of those that stay."""
    paths = _states(run / STATE)
    for path in paths[:-number]:
        path.unlink()
    return sum(path.stat().st_size for path in paths[-number:])
