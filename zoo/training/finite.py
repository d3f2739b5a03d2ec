"""A loss that is infinite or not a number: found without making a GPU wait, told with its files, its batch kept."""

import json
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from zoo.files import aside
from zoo.training.loader import Batch

WAITING = 8  # losses on a GPU that are not known yet, whose batches are kept


@dataclass(frozen=True)
class Loss:
    """The terms of a loss, and its batch. epoch, step: counted from 1; ready: when values are known, None = now."""

    epoch: int
    step: int
    names: list[str]
    values: Tensor
    batch: Batch
    ready: Any = None

    def wrong(self) -> dict[str, float]:
        """The terms that are infinite or not a number; waits for the device."""
        if self.ready is not None:
            self.ready.synchronize()
        terms = zip(self.names, self.values.tolist(), strict=True)
        return {name: value for name, value in terms if not math.isfinite(value)}

    @property
    def paths(self) -> list[str]:
        """Of the batch's images."""
        return [str(path) for path in self.batch.get("path", ())]

    def save(self, path: Path) -> str:
        """Write the batch's tensors to `path`, with names, terms and step as JSON in its metadata; a sentence on it."""
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.batch.items() if isinstance(v, Tensor)}
        facts = {"epoch": self.epoch, "step": self.step, "terms": self.wrong(), "paths": self.paths}
        try:
            with aside(path) as temporary:
                save_file(tensors, temporary, metadata={key: json.dumps(value) for key, value in facts.items()})
        except (OSError, SafetensorError) as error:
            return f" The batch could not be saved ({error})."
        return f" The batch is saved in {path}."

    def sentence(self, lr: float, saved: str) -> str:
        """What is wrong with it, and what to do."""
        terms = ", ".join(f"{name} is {value:g}" for name, value in self.wrong().items())
        finite = self.batch["image"].isfinite().flatten(1).all(1).tolist()
        broken = [path for path, fine in zip(self.paths, finite, strict=False) if not fine]
        cause = f" Pixels that are no numbers are in {few(broken)}." if broken else ""
        return (
            f"The loss is infinite or not a number in step {self.step}, epoch {self.epoch}: {terms}.{cause} The batch:"
            f" {few(self.paths, 16)}.{saved} Lower optimizer.lr (now {lr:g}), set --trainer.gradient_clip_val 1, or"
            " leave such steps out: --on_nan skip."
        )


class Losses:
    """Looks at every loss without making the GPU wait: its values come by themselves, some steps later."""

    def __init__(self) -> None:
        self.waiting: deque[Loss] = deque()

    def add(self, when: tuple[int, int], names: list[str], values: Tensor, batch: Batch) -> None:
        """when: epoch and step; values (terms,), on any device."""
        ready = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)  # into pinned memory
            ready = torch.cuda.Event()
            ready.record()
        self.waiting.append(Loss(*when, names, values, batch, ready))

    def first_wrong(self, *, wait: bool = False) -> Loss | None:
        """The earliest loss that is no number, of those that are known; wait: of all."""
        while self.waiting:
            loss = self.waiting[0]
            if not wait and len(self.waiting) <= WAITING and loss.ready is not None and not loss.ready.query():
                return None
            if self.waiting.popleft().wrong():
                self.waiting.clear()  # those after it follow from it
                return loss
        return None


def few(things: Iterable[Any], most: int = 5) -> str:
    """The first of some things, and a sign that there are more."""
    words = list(map(str, things))
    return f"{', '.join(words[:most])}{', ...' if len(words) > most else ''}"
