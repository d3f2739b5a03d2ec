"""What a person has, as images with what goes in beside them: files, folders, arrays, tensors, PIL images."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from zoo.datasets.intensity import Intensity, read_image
from zoo.datasets.pixels import find_images, stored_size
from zoo.datasets.rows import Rows, check_finite, open_rows
from zoo.errors import UserError, nearest

Source = str | Path | Image.Image | np.ndarray | Tensor
TAKEN = "give a path, PIL image, array or tensor"


@dataclass
class Item:
    """One image, (H, W, C) uint8 or float, with what goes in beside it; a large TIFF is read by rows where needed."""

    path: Path | None
    pixels: np.ndarray | Rows
    inputs: dict[str, Any]

    @property
    def shape(self) -> tuple[Any, ...]:
        """What must be equal for images to be computed together."""
        alone = id(self) if isinstance(self.pixels, Rows) else 0
        return self.pixels.dtype, self.pixels.shape, [array.shape for array in self.inputs.values()], alone


def check_names(task: Any, inputs: Mapping[str, Any], options: Sequence[str] = ()) -> None:
    """Raise UserError for what the task doesn't take beside the image. options: names that may be meant as well."""
    known = [*task.planes, *task.prompts]
    for name in inputs:
        if name not in known:
            listed = f"; beside the image it takes: {', '.join(known)}." if known else "; it takes the image alone."
            near = nearest(name, [*known, *options])
            raise UserError(f"The task {task.name!r} takes no input {name!r}{near or listed}")


def beside(folder: str | Path, places: Sequence[str]) -> list[Path]:
    """For each image's place below its folder (without a suffix) the file of that place in another folder.

    Raises UserError with the first image that has none.
    """
    there = {file.relative_to(folder).with_suffix("").as_posix(): file for file in find_images(folder)}
    for place in places:
        if place not in there:
            raise UserError(f"The folder {str(folder)!r} holds no file for the image {place!r}{nearest(place, there)}.")
    return [there[place] for place in places]


def pairs(
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
    columns = {name: iter(values) for name, values in inputs.items()}
    for i, image in enumerate(images):
        row = {name: next(column, columns) for name, column in columns.items()}  # `columns` stands for nothing left
        for name, value in row.items():
            if value is columns:
                raise UserError(f"`{name}` ends after {i} of the images, and there are more; give one for each.")
        yield image, row


def read(
    source: Source, inputs: Mapping[str, Any], intensity: Intensity, channels: int, planes: Mapping[str, int], most: int
) -> Item:
    """An image and what goes in beside it. most: bytes above which a TIFF is left in its file, to be read by rows."""
    if isinstance(source, str | Path):
        source = Path(os.path.expanduser(source))  # pathlib raises where there is no such user
    path = source if isinstance(source, Path) else None
    pixels = _pixels(source, intensity, channels, most)
    given: dict[str, Any] = {}
    for name, value in inputs.items():
        if name not in planes:
            value = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
            given[name] = value.astype(np.float32) if value.dtype == np.float64 else value
            continue
        given[name] = _pixels(value, Intensity(), planes[name], most)
        if given[name].shape[:2] != pixels.shape[:2]:
            (height, width), (tall, wide) = given[name].shape[:2], pixels.shape[:2]
            raise UserError(f"`{name}` is {height}x{width} for {path or 'an image'} of {tall}x{wide}; make them equal.")
    return Item(path, pixels, given)


def size_read(source: Source, channels: int) -> int | None:
    """Bytes that a file takes as pixels, at most; 0 for what is in memory, None where its header doesn't tell."""
    if not isinstance(source, str | Path):
        return 0
    size = stored_size(Path(source))
    return None if size is None else 4 * channels * size[0] * size[1]


def _pixels(source: Source, intensity: Intensity, channels: int, most: int) -> np.ndarray | Rows:
    if isinstance(source, str | Path):
        found = open_rows(Path(source), intensity, channels, most) or read_image(source, intensity, channels)
    else:
        found = read_image(_array(source, intensity), intensity, channels)
    if not isinstance(found, Rows):
        check_finite(found, str(source) if isinstance(source, str | Path) else "The image")
    return found


def _array(source: Any, intensity: Intensity) -> Any:
    """A tensor (C, H, W) or (H, W) as an array (H, W[, C]), bytes in the machine's order; a PIL image as it is."""
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, Tensor):
        if source.ndim not in (2, 3):
            raise UserError(f"A tensor to predict on is (C, H, W); this one is {tuple(source.shape)}.")
        array = (source.float() if source.is_floating_point() else source).detach().cpu().numpy()
        array = array if array.ndim == 2 else array.transpose(1, 2, 0)
    elif isinstance(source, np.ndarray):
        array = source.astype(source.dtype.newbyteorder("="), copy=False)
    else:
        raise UserError(f"{source!r} is no image; {TAKEN}.")
    known = array.dtype.kind not in "iu" or array.dtype in (np.uint8, np.uint16)
    if not known and intensity == Intensity(channels=intensity.channels) and array.max(initial=0) > 1:
        raise UserError(
            f"The image is {array.dtype} up to {array.max()}, of which no range is known; give uint8 (0 to 255), uint16"
            " or floats in [0, 1]."
        )
    return array
