"""From files, folders or arrays to predictions: read ahead, batched, run, answered; for models and programs alike."""

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.errors import ImageError, UserError
from zoo.inference.answer import PRECISIONS, Answers, Net
from zoo.inference.augment import check_tta
from zoo.inference.memory import parse
from zoo.inference.sources import TAKEN, Item, Source, check_names, pairs, read, size_read
from zoo.inference.stream import batches, read_ahead
from zoo.prediction import Prediction, default_colors


def predict(
    net: Net,
    files: Source | Iterable[Source],
    inputs: Mapping[str, Any],
    *,
    device: str | torch.device | None = None,
    batch_size: int = 1,
    precision: str = "32",
    num_workers: int = 2,
    threshold: float | None = None,
    memory: str | int | None = None,
    tta: str = "none",
    drop: Sequence[str] = (),
    failed: list[UserError] | None = None,
) -> Any:
    """What `Model.predict` gives; its docstring describes the options.

    The error of a single image is raised, `failed` or not. Integers of an array are uint8 or uint16, unless the net's
    intensity scales others.
    """
    if precision not in PRECISIONS:
        raise UserError(f"There is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}.")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
    if isinstance(files, str | Path):
        files = Path(os.path.expanduser(files))  # pathlib raises where there is no such user
    elif not isinstance(files, Iterable | Image.Image):
        raise UserError(f"{files!r} is no image: {TAKEN}, or a list, folder or generator of them.")
    _check_inputs(net, inputs)
    check_tta(tta, [name for name in inputs if name in net.task.prompts])
    allowed = None if memory is None else parse(memory)
    target = find_device(device, net.device)

    def stream(
        found: Iterable[tuple[Any, Mapping[str, Any]]], size: int, workers: int, failed: list[UserError] | None
    ) -> Iterator[Prediction]:
        answers = Answers(
            net, target, precision=precision, tta=tta, threshold=threshold, memory=allowed, drop=tuple(drop)
        )
        yield from _stream(net, found, answers, size, workers, failed)

    if isinstance(files, Image.Image | np.ndarray | Tensor) or (isinstance(files, Path) and not os.path.isdir(files)):
        return next(stream([(files, inputs)], 1, 0, None))
    found = stream(pairs(files, inputs), batch_size, num_workers, failed)
    return list(found) if isinstance(files, list | tuple) else found


def _check_inputs(net: Net, inputs: Mapping[str, Any]) -> None:
    """Raise UserError for what neither the task takes nor `predict`, with the nearest name of both."""
    parameters = inspect.signature(getattr(net, "predict", predict)).parameters.values()
    options = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    if "device" in inputs and "device" not in options:
        raise UserError("The device of a program is chosen when it is opened: zoo.load_program(path, device=...).")
    if "precision" in inputs and "precision" not in options:
        raise UserError("An exported program computes in float32; leave `precision` out, or predict with the model.")
    check_names(net.task, inputs, options)


def find_device(device: str | torch.device | None, default: torch.device) -> torch.device:
    """The device of that name. Raises UserError, with what there is, where torch finds none."""
    if device is None:
        return default
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError):
        there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        use = there or "cpu"
        raise UserError(f"torch {torch.__version__} finds no device {str(device)!r} here; use {use}.") from None
    return target


def _stream(
    net: Net,
    pairs: Iterable[tuple[Any, Mapping[str, Any]]],
    answers: Answers,
    batch_size: int,
    num_workers: int,
    failed: list[UserError] | None,
) -> Iterator[Prediction]:
    def image(pair: tuple[Source, Mapping[str, Any]]) -> Item | None:
        try:
            return read(*pair, net.intensity, net.in_channels, net.task.planes, answers.most)
        except UserError as error:
            if failed is None:
                raise
            failed.append(error)
            return None

    def answered(batch: list[Item]) -> Iterator[tuple[Item, tuple[np.ndarray, dict[str, np.ndarray]]]]:
        try:
            yield from zip(batch, answers(batch), strict=True)
        except ImageError as error:  # before the first answer, or of an image that is a batch by itself
            if failed is None:
                raise
            if len(batch) == 1:
                failed.append(error)
            else:
                for item in batch:
                    yield from answered([item])

    waiting = None if answers.given is None else answers.given // 4

    def size(pair: tuple[Source, Mapping[str, Any]]) -> int:
        taken = size_read(pair[0], net.in_channels + sum(net.task.planes.values()))
        return waiting or 0 if taken is None else taken

    items = (item for item in read_ahead(image, pairs, num_workers, size, waiting) if item)
    for batch in batches(items, batch_size, lambda item: item.shape):
        for item, (pixels, arrays) in answered(batch):
            yield Prediction(
                image=pixels,
                arrays=arrays,
                path=item.path,
                class_names=net.task.class_names or (),
                class_colors=net.task.class_colors or default_colors(net.task.num_outputs),
            )
