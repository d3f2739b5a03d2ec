"""Several models of one task as one: their probabilities are averaged, through the same loop as a single model's."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.model import Model


class Ensemble(nn.Module):
    """Models that answer together, such as the folds of a cross-validation; called as a `Model` is.

    What is averaged the task says (`Segmentation.average`: probabilities). Each model keeps its own encoder, size and
    normalisation; threshold, class names and colours are the first one's. names: of the models, for messages.
    Raises UserError where there is no model, and for models of different tasks, classes, channels or pixel values.
    """

    def __init__(self, models: Sequence[Model], names: Sequence[str] = ()):
        super().__init__()
        if not models:
            raise UserError("An ensemble needs a model; this one has none.")
        names = names or [f"model {i}" for i in range(1, len(models) + 1)]
        for model, name in zip(models, names, strict=True):
            _check(models[0], model, names[0], name)
        self.models = nn.ModuleList(models)
        self.task, self.intensity = models[0].task, models[0].intensity

    def forward(self, image: Tensor, **inputs: Tensor) -> dict[str, Any]:
        """Raw outputs whose answer is the average; image and inputs as `Model.forward` takes them."""
        averaged: dict[str, Any] = self.task.average([model(image, **inputs) for model in self.models])
        return averaged

    def answer(self, image: Tensor, *, threshold: float | None = None, **inputs: Tensor) -> dict[str, Any]:
        """Averaged raw outputs and the task's answer on them."""
        outputs = self(image, **inputs)
        return {**outputs, **self.finish(outputs, {"image": image, **inputs}, threshold)}

    def predict(self, files: Any, **options: Any) -> Any:
        """The averaged answer on anything a person has; options and what comes back: those of `Model.predict`."""
        return Model.predict(self, files, **options)  # type: ignore[arg-type]  # it asks for no more than there is here

    hidden, fixed = (0, 0), None

    @property
    def _first(self) -> Model:
        return self.models[0]  # type: ignore[return-value]

    @property
    def in_channels(self) -> int:
        return self._first.in_channels

    @property
    def least(self) -> int:
        return max(int(model.least) for model in self.models)  # type: ignore[arg-type]

    @property
    def grid(self) -> int | None:
        """A multiple of every model's; None where one of them takes the image whole."""
        grids = [model.grid for model in self.models]
        return None if None in grids else math.lcm(*grids)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        return self._first.device

    @property
    def dtype(self) -> torch.dtype:
        return self._first.dtype

    def finish(
        self, outputs: Mapping[str, Any], inputs: Mapping[str, Tensor], threshold: float | None = None
    ) -> dict[str, Tensor]:
        return self._first.finish(outputs, inputs, threshold)

    def ready(self, device: torch.device) -> Callable[..., dict[str, Any]]:
        """The faster equals of all models on `device`, averaged."""
        runs = [model.ready(device) for model in self.models]  # type: ignore[operator]

        def run(image: Tensor, **inputs: Tensor) -> dict[str, Any]:
            averaged: dict[str, Any] = self.task.average([one(image, **inputs) for one in runs])
            return averaged

        return run


def _check(first: Model, model: Model, name: str, other: str) -> None:
    """Raise UserError where two models' answers cannot be averaged."""
    if not hasattr(first.task, "average"):
        raise UserError(f"The task {first.task.name!r} of {name} has no answers that can be averaged; use one model.")
    facts = {
        "the task": lambda m: m.task.name,
        "the mode": lambda m: getattr(m.task, "mode", None),
        "the number of classes": lambda m: m.task.num_classes,
        "the class names": lambda m: m.task.class_names,
        "the channels of an image": lambda m: m.in_channels,
        "the intensity (how file values become pixels)": lambda m: m.intensity,
    }
    for what, of in facts.items():
        if of(model) != of(first):
            raise UserError(
                f"{name} and {other} cannot answer together: {what} is {_told(of(first))} in the one and"
                f" {_told(of(model))} in the other."
            )


def _told(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
