"""What `model.predict` gives for one image: arrays at the image's size, and ways to look at them and keep them."""

import colorsys
import io
import json
import math
import mmap
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.files import aside

Color = tuple[int, int, int]
LARGE = 2**26  # pixels above which maps are written by windows, as tiled TIFF
PREVIEW = 2048  # the longer side of the overlay of an image that is so large, or memory-mapped
BAND = 2**18  # pixels of an overlay that are painted at once
WINDOW = 512  # the side of a TIFF's tiles


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The answer for one image. `prediction.mask` and `prediction["mask"]` are the same array.

    image: (H, W, C) as read, uint8, or float in the model's range. arrays: the task's answer at that size; for
    segmentation `mask` (H, W) class ids, uint8 or int64, or (K, H, W) bool where classes overlap, and
    `probabilities` (K, H, W) float32 in [0, 1]. path: where the image came from, None for one from memory.
    class_names, class_colors (RGB, 0-255): one for each class; in binary segmentation the one foreground.
    Of an image too large for memory both are memory-mapped (`numpy.memmap`), from temporary files that go with them.
    """

    image: np.ndarray
    arrays: dict[str, np.ndarray]
    path: Path | None = None
    class_names: Sequence[str] = ()
    class_colors: Sequence[Color] = ()

    def __repr__(self) -> str:
        arrays = ", ".join(f"{key} {value.dtype} {value.shape}" for key, value in self.arrays.items())
        return f"Prediction({self.path or 'an image'}, {self.image.shape[1]}x{self.image.shape[0]}: {arrays})"

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def __getattr__(self, key: str) -> np.ndarray:
        # `arrays` itself is missing while a copy is being unpickled
        if key != "arrays" and key in self.arrays:
            return self.arrays[key]
        raise AttributeError(f"this prediction has {', '.join(self.__dict__.get('arrays', ()))}; it has no {key!r}")

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The image with every class in its colour, as RGB; a class named "background" stays clear.

        Without a mask it is the image as it is. Of a memory-mapped image, and above 2^26 pixels, it is a preview: every
        nth row and column, at most 2048.
        """
        return Image.fromarray(self._painted(opacity))

    def save(self, folder: str | Path, *, name: str | None = None, probabilities: bool = False) -> list[Path]:
        """Write the answer as files that other programs read; returns the paths.

        `mask`: `NAME.png` (class ids, uint8 or uint16) and `NAME_overlay.png`; overlapping classes get a file each,
        `NAME_CLASS.png` with 0 and 1 (`NAME_CLASS_0.png`, by number, where names are equal as files). Every other map
        of one or three planes in [0, 1], as an alpha or an image, is `NAME_KEY.png` (8 bits), single numbers are in
        `NAME.json`. Above 2^26 pixels a map is a tiled TIFF, `.tif` in place of `.png`, written by windows, and the
        overlay a preview. probabilities: `NAME_probabilities.npz` too.
        name: a file stem, may hold subfolders; by default the image's own, "prediction" for one from memory (so give
        names where images of several folders may share one). Each file is written aside and then renamed.
        """
        stem = Path(folder) / (name or (self.path.stem if self.path else "prediction"))
        stem.parent.mkdir(parents=True, exist_ok=True)
        files: dict[str, Any] = {}
        end = ".tif" if self._large else ".png"
        if "mask" in self.arrays:
            mask = self.arrays["mask"]
            if mask.ndim == 3:
                names = _file_names(
                    self.class_names or [*map(str, range(len(mask)))],
                    {"overlay", *self.arrays} - {"mask", "probabilities"},
                )
                files |= {f"_{k}{end}": partial(_ids, m, np.uint8) for k, m in zip(names, mask, strict=True)}
            else:
                files[end] = partial(_ids, mask, np.uint8 if len(self.class_colors) <= 256 else np.uint16)
            files["_overlay.png"] = lambda window: self._painted(0.5)  # made when the mask is written and gone
        others = {key: array for key, array in self.arrays.items() if key not in ("mask", "probabilities")}
        size = self.image.shape[:2]
        pictures = {key: array for key, array in others.items() if array.shape in ((1, *size), (3, *size))}
        files |= {f"_{key}{end}": partial(_bytes, array) for key, array in pictures.items()}
        if numbers := {key: array.item() for key, array in others.items() if array.ndim == 0}:
            files[".json"] = numbers
        if probabilities and "probabilities" in self.arrays:
            files["_probabilities.npz"] = self.arrays["probabilities"]
        return [_write(stem.with_name(stem.name + end), content, size) for end, content in files.items()]

    def _painted(self, opacity: float) -> np.ndarray:
        """The overlay's pixels (h, w, 3)."""
        reduced = self._large or isinstance(self.image, np.memmap)
        n = -(-max(self.image.shape[:2]) // PREVIEW) if reduced else 1
        pixels, mask = self.image[::n, ::n], self.arrays.get("mask")
        # a range that an `intensity` gives may be any
        limits = (0.0, 255.0) if pixels.dtype == np.uint8 else (pixels.min(initial=0), pixels.max(initial=1))
        picture = np.empty((*pixels.shape[:2], 3), np.uint8)
        step = max(1, BAND // pixels.shape[1])
        for band in (slice(top, top + step) for top in range(0, len(pixels), step)):
            rows = _rgb(pixels[band], *map(float, limits)).astype(np.float32)
            if mask is not None:
                for color, where in self._layers(mask[..., ::n, ::n][..., band, :]):
                    rows[where] = (1 - opacity) * rows[where] + opacity * np.asarray(color, np.float32)
            picture[band] = rows.round().astype(np.uint8)
            _let_go(pixels, mask)
        return picture

    @property
    def _large(self) -> bool:
        return math.prod(self.image.shape[:2]) > LARGE

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.overlay().save(buffer, format="PNG")
        return buffer.getvalue()

    def _layers(self, mask: np.ndarray) -> list[tuple[Color, np.ndarray]]:
        """(colour, where) for each class to paint, in the order of painting."""
        count = len(mask) if mask.ndim == 3 else max(len(self.class_colors), 1)
        colors = list(self.class_colors) or default_colors(count)
        if mask.ndim == 3:
            return list(zip(colors, mask, strict=True))
        if count == 1:
            return [(colors[0], mask == 1)]
        painted = [k for k in range(count) if not self.class_names or self.class_names[k] != "background"]
        return [(colors[k], mask == k) for k in painted]


def default_colors(count: int) -> list[Color]:
    """`count` distinct RGB colours: hues a golden angle apart, so that the first ones don't change with the count."""
    hues = [(0.0 + 0.381966 * k) % 1 for k in range(count)]
    rgb = [colorsys.hsv_to_rgb(h, 0.85 if k % 2 == 0 else 0.6, 1.0 if k % 3 else 0.85) for k, h in enumerate(hues)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb]


def stems_of(file: Path) -> set[Path]:
    """The paths FOLDER/NAME for which `Prediction.save` might write this very file, whatever the task and its classes.

    a/x_1_b.png may be of a/x_1_b, of a/x_1 (a class "b") and of a/x (a class "1 b").
    """
    if file.suffix not in (".png", ".tif", ".json", ".npz"):
        return set()
    parts = file.stem.split("_")
    return {file.with_name("_".join(parts[:k])) for k in range(1, len(parts) + 1) if parts[:k] != [""]}


Window = tuple[slice, slice]
Part = Callable[[Window], np.ndarray]  # a window of a picture: (h, w) or (h, w, 3), uint8 or uint16


def _file_names(classes: Sequence[str], taken: set[str]) -> list[str]:
    """Names of classes as parts of file names, each another one, on disks that don't tell case apart too."""
    names = [re.sub(r"[^\w.-]+", "_", name) for name in classes]
    while True:
        count = Counter([name.casefold() for name in names] + [name.casefold() for name in taken])
        if not any(count[name.casefold()] > 1 for name in names):
            return names
        names = [f"{name}_{k}" if count[name.casefold()] > 1 else name for k, name in enumerate(names)]


def _rgb(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Pixels as RGB bytes: three channels as they are, one repeated, of more the first three."""
    pixels = np.repeat(pixels[..., :1], 3, axis=2) if pixels.shape[2] < 3 else pixels[..., :3]
    return pixels if pixels.dtype == np.uint8 else ((pixels - low) / (high - low) * 255).round().astype(np.uint8)


def _ids(mask: np.ndarray, dtype: type, window: Window) -> np.ndarray:
    part: np.ndarray = mask[window].astype(dtype)
    _let_go(mask)
    return part


def _bytes(planes: np.ndarray, window: Window) -> np.ndarray:
    """(1, H, W) or (3, H, W) in [0, 1]: a window of it as (h, w) or (h, w, 3) bytes."""
    pixels = (planes[:, *window].clip(0, 1) * 255).round().astype(np.uint8)
    _let_go(planes)
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


def _let_go(*arrays: np.ndarray | None) -> None:
    """Give back the memory of what has been read of mapped arrays; their file has it still."""
    for array in arrays:
        mapped = getattr(array, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def _write(path: Path, content: Image.Image | np.ndarray | dict[str, Any] | Part, size: tuple[int, ...]) -> Path:
    with aside(path) as temporary:
        if isinstance(content, Image.Image):
            content.save(temporary)
        elif isinstance(content, dict):
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        elif isinstance(content, np.ndarray):
            np.savez_compressed(temporary, probabilities=content)
        elif path.suffix == ".tif":
            _write_tiff(temporary, content, size)
        else:
            Image.fromarray(content((slice(None), slice(None)))).save(temporary)
    return path


def _write_tiff(path: Path, content: Part, size: tuple[int, ...]) -> None:
    """A tiled, deflated TIFF, a BigTIFF above 2 GB, of which no more than a tile is ever in memory."""
    import tifffile

    height, width = size
    corner = content((slice(0, 1), slice(0, 1)))
    shape = (height, width, *corner.shape[2:])

    def tiles() -> Iterator[np.ndarray]:
        for top in range(0, height, WINDOW):
            for left in range(0, width, WINDOW):
                part = content((slice(top, top + WINDOW), slice(left, left + WINDOW)))
                yield np.pad(part, [(0, WINDOW - side) for side in part.shape[:2]] + [(0, 0)] * (part.ndim - 2))

    tifffile.imwrite(
        path,
        tiles(),
        shape=shape,
        dtype=corner.dtype,
        tile=(WINDOW, WINDOW),
        compression="zlib",
        photometric="rgb" if len(shape) == 3 else "minisblack",
        bigtiff=math.prod(shape) * corner.itemsize > 2**31,
        metadata=None,
    )
