"""From files, folders or arrays to predictions: read ahead, batched, run, answered; for models and programs alike."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.datasets.intensity import Intensity, read_image
from zoo.datasets.pixels import find_images
from zoo.errors import UserError, nearest
from zoo.inference.stream import batches, read_ahead
from zoo.prediction import Prediction, default_colors

Source = str | Path | Image.Image | np.ndarray | Tensor
PRECISIONS: dict[str, torch.dtype | None] = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}


class Net(Protocol):
    """What one can predict with: a model, or a program exported from one.

    ready(device): the function (image, **inputs) -> raw outputs, at its fastest there. finish: the task's answer.
    """

    task: Any
    intensity: Intensity

    @property
    def in_channels(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def ready(self, device: torch.device) -> Callable[..., dict[str, Any]]: ...
    def finish(
        self, outputs: Mapping[str, Any], inputs: Mapping[str, Tensor], threshold: float | None
    ) -> dict[str, Tensor]: ...


@dataclass
class Item:
    """One image as read, (H, W, C) uint8 or float, with what goes in beside it."""

    path: Path | None
    pixels: np.ndarray
    inputs: dict[str, np.ndarray]

    @property
    def shape(self) -> tuple[Any, ...]:
        """What must be equal for images to be computed together."""
        return self.pixels.dtype, self.pixels.shape, [array.shape for array in self.inputs.values()]


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
    failed: list[UserError] | None = None,
) -> Any:
    """What `Model.predict` gives; its docstring describes the options."""
    if precision not in PRECISIONS:
        raise UserError(f"There is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}.")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
    check_names(net.task, inputs)
    target = find_device(device, net.device)
    single = isinstance(files, Image.Image | np.ndarray | Tensor) or (
        isinstance(files, str | Path) and not Path(files).is_dir()
    )
    if single:
        return next(_stream(net, [(files, inputs)], target, 1, precision, 0, threshold, None))
    pairs = _pairs(files, inputs)  # type: ignore[arg-type]
    stream = _stream(net, pairs, target, batch_size, precision, num_workers, threshold, failed)
    return list(stream) if isinstance(files, list | tuple) else stream


def check_names(task: Any, inputs: Mapping[str, Any]) -> None:
    """Raise UserError for what the task doesn't take beside the image."""
    known = [*task.planes, *task.prompts]
    for name in inputs:
        if name not in known:
            listed = f"; beside the image it takes: {', '.join(known)}." if known else "; it takes the image alone."
            raise UserError(f"The task {task.name!r} takes no input {name!r}{nearest(name, known)}{listed}")


def beside(folder: str | Path, places: Sequence[str]) -> list[Path]:
    """For each image's place below its folder (without a suffix) the file of that place in another folder.

    Raises UserError with the first image that has none.
    """
    there = {file.relative_to(folder).with_suffix("").as_posix(): file for file in find_images(folder)}
    for place in places:
        if place not in there:
            raise UserError(f"The folder {str(folder)!r} holds no file for the image {place!r}{nearest(place, there)}.")
    return [there[place] for place in places]


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


def _pairs(
    files: str | Path | Iterable[Source], inputs: Mapping[str, Any]
) -> Iterable[tuple[Source, Mapping[str, Any]]]:
    """Each image with its own inputs: by place for folders, in order for lists and generators."""
    if isinstance(files, str | Path):
        images = list(find_images(files))
        places = [image.relative_to(files).with_suffix("").as_posix() for image in images]
        for name, folder in inputs.items():
            if not isinstance(folder, str | Path) or not Path(folder).is_dir():
                raise UserError(f"The images are a folder, so `{name}` is one too, with files of the same names.")
        return _zipped(images, {name: beside(folder, places) for name, folder in inputs.items()})
    for name, values in inputs.items():
        if isinstance(values, str | Path | np.ndarray | Tensor) or not isinstance(values, Iterable):
            raise UserError(f"There are several images, so `{name}` is a list with something for each.")
        if isinstance(files, list | tuple) and isinstance(values, list | tuple) and len(files) != len(values):
            raise UserError(f"`{name}` has {len(values)} entries for {len(files)} images; give one for each.")
    return _zipped(files, inputs)


def _zipped(images: Iterable[Source], inputs: Mapping[str, Any]) -> Iterator[tuple[Source, Mapping[str, Any]]]:
    columns = [iter(values) for values in inputs.values()]
    for image in images:
        yield image, dict(zip(inputs, [next(column) for column in columns], strict=True))


def _stream(
    net: Net,
    pairs: Iterable[tuple[Any, Mapping[str, Any]]],
    device: torch.device,
    batch_size: int,
    precision: str,
    num_workers: int,
    threshold: float | None,
    failed: list[UserError] | None,
) -> Iterator[Prediction]:
    run = net.ready(device)
    kind = PRECISIONS[precision]

    def read(pair: tuple[Source, Mapping[str, Any]]) -> Item | None:
        try:
            return _read(net, *pair)
        except UserError as error:
            if failed is None:
                raise
            failed.append(error)
            return None

    items = (item for item in read_ahead(read, pairs, num_workers) if item)
    for batch in batches(items, batch_size, lambda item: item.shape):
        image = _planes([item.pixels for item in batch], device, net.dtype)
        inputs = {
            name: _planes([item.inputs[name] for item in batch], device, net.dtype)
            if name in net.task.planes
            else torch.from_numpy(np.stack([item.inputs[name] for item in batch])).to(device)
            for name in batch[0].inputs
        }
        with torch.inference_mode(), torch.autocast(device.type, kind or torch.bfloat16, enabled=kind is not None):
            answer = net.finish(run(image, **inputs), {"image": image, **inputs}, threshold)
        arrays = {key: value.cpu().numpy() for key, value in answer.items()}
        for i, item in enumerate(batch):
            yield Prediction(
                image=item.pixels,
                arrays={key: value[i] for key, value in arrays.items()},
                path=item.path,
                class_names=net.task.class_names or (),
                class_colors=net.task.class_colors or default_colors(net.task.num_outputs),
            )


def _planes(pixels: list[np.ndarray], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) in [0, 1], channels-last in memory, as convolutions like it."""
    stacked = torch.from_numpy(np.stack(pixels)).to(device).permute(0, 3, 1, 2)
    return (stacked / 255 if stacked.dtype == torch.uint8 else stacked).to(dtype)


def _read(net: Net, source: Source, inputs: Mapping[str, Any]) -> Item:
    path = Path(source) if isinstance(source, str | Path) else None
    pixels = read_image(path or _array(source), net.intensity, net.in_channels)
    read: dict[str, np.ndarray] = {}
    for name, value in inputs.items():
        if name not in net.task.planes:
            value = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
            read[name] = value.astype(np.float32) if value.dtype == np.float64 else value
            continue
        read[name] = read_image(
            value if isinstance(value, str | Path) else _array(value), Intensity(), net.task.planes[name]
        )
        if read[name].shape[:2] != pixels.shape[:2]:
            (height, width), (tall, wide) = read[name].shape[:2], pixels.shape[:2]
            raise UserError(f"`{name}` is {height}x{width} for {path or 'an image'} of {tall}x{wide}; make them equal.")
    return Item(path, pixels, read)


def _array(source: Any) -> Any:
    """A tensor (C, H, W) or (H, W) as an array (H, W[, C]); all else as it is."""
    if not isinstance(source, Tensor):
        return source
    if source.ndim not in (2, 3):
        raise UserError(f"A tensor to predict on is (C, H, W); this one is {tuple(source.shape)}.")
    array = (source.float() if source.is_floating_point() else source).detach().cpu().numpy()
    return array if array.ndim == 2 else array.transpose(1, 2, 0)
