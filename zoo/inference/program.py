"""An exported program as something one can predict with, in place of the model it was made from."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.datasets.intensity import Intensity
from zoo.errors import ImageError, UserError
from zoo.inference.predict import predict
from zoo.inference.sources import Source

Run = Callable[[Mapping[str, Tensor], list[str]], dict[str, Tensor]]


class Program:
    """A program with the task of its model; opened by `zoo.load_program`.

    Like a model's, its raw outputs are answered by the task, so that a threshold can be set at call time; the answer
    inside the file is for everybody else, and was compared with the model's when the file was written.
    facts: what the file says of itself. run(inputs, names): its named outputs, on `device`.
    """

    dtype = torch.float32

    def __init__(self, facts: dict[str, Any], run: Run, task: Any, device: torch.device):
        self.facts, self.task, self.device = facts, task, device
        self.config: dict[str, Any] = facts["config"]
        self.intensity = Intensity.of(self.config["intensity"] or {})
        self.fixed: tuple[int, int] | None = tuple(facts["size"]) if facts["size"] else None
        self._run = run

    @property
    def grid(self) -> int | None:
        """What a tile's place must be a multiple of; None for a program that is never tiled."""
        return None if self.fixed else self.facts["grid"]

    @property
    def least(self) -> int:
        """Pixels that it computes on at least."""
        return math.prod(self.fixed) if self.fixed else int(self.facts["least"])

    @property
    def hidden(self) -> Sequence[int]:
        """What its model took for two small images, in bytes, or for one of the only size that it takes.

        A runtime's own tensors cannot be counted.
        """
        found: Sequence[int] = self.facts["bytes"]
        return found

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return int(self.config["in_channels"])

    def ready(self, device: torch.device) -> Callable[..., dict[str, Any]]:
        """The raw outputs as a function of (image, **inputs). Where it computes was settled when it was opened."""
        return self.__call__

    def __call__(self, image: Tensor, **inputs: Tensor) -> dict[str, Any]:
        """Raw outputs for an image (B, C, H, W). Raises UserError for another size than that of a fixed program."""
        if self.fixed and tuple(image.shape[-2:]) != self.fixed:
            (height, width), (tall, wide) = image.shape[-2:], self.fixed
            raise ImageError(
                f"This program takes images of {tall}x{wide} alone; this one is {height}x{width}. Export the model with"
                f" --size {height}x{width}, or predict with its checkpoint, which takes any size."
            )
        taken = {"image": image, **inputs}
        for name in self.facts["inputs"]:
            if name not in taken:
                raise UserError(f"The program needs `{name}` beside the image: predict(files, {name}=...).")
        return self._run({name: taken[name] for name in self.facts["inputs"]}, self.facts["raw"])

    def finish(
        self, outputs: Mapping[str, Any], inputs: Mapping[str, Tensor], threshold: float | None = None
    ) -> dict[str, Tensor]:
        """The task's answer on raw outputs."""
        answer: dict[str, Tensor] = self.task.answer(outputs, threshold, inputs)
        return answer

    def predict(
        self,
        files: Source | Iterable[Source],
        *,
        batch_size: int = 1,
        num_workers: int = 2,
        threshold: float | None = None,
        memory: str | int | None = None,
        tta: str = "none",
        drop: Sequence[str] = (),
        failed: list[UserError] | None = None,
        **inputs: Any,
    ) -> Any:
        """The answer on a path, PIL image, array or tensor, or on a list, folder or generator, as `Model.predict`."""
        return predict(
            self,
            files,
            inputs,
            batch_size=batch_size,
            num_workers=num_workers,
            threshold=threshold,
            memory=memory,
            tta=tta,
            drop=drop,
            failed=failed,
        )
