"""From a file's values to pixels: bit depth, window, percentile, z-score, channel order; for data sets and predict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from zoo.datasets.pixels import pil_values, read_stored, upright
from zoo.datasets.tiff import ORIENTATION
from zoo.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as Pillow's


@dataclass(frozen=True)
class Intensity:
    """What a file's values become; JSON. At most one of bits, window, percentile and zscore.

    Without any: 8 and 16 bits go to [0, 1] by their full range, floats and 32-bit integers are taken as they are.
    """

    bits: int | None = None
    """significant bits, such as 12: value / (2^bits - 1)"""
    window: Sequence[float] | None = None
    """[low, high] in file values become 0 and 1; outside is cut"""
    percentile: Sequence[float] | None = None
    """[low, high] in per cent: the window of each image by itself, over all its channels"""
    zscore: bool = False
    """each channel of each image minus its mean, over its standard deviation; not in [0, 1]"""
    channels: Sequence[int] | None = None
    """the file's channels to take, in this order, from 0: [2, 1, 0] for files with blue first"""

    def __post_init__(self) -> None:
        set_ones = [
            key for key in ("bits", "window", "percentile", "zscore") if getattr(self, key) not in (None, False)
        ]
        if len(set_ones) > 1:
            raise UserError(f"intensity sets {' and '.join(set_ones)}; choose one of them.")
        if self.bits is not None and not (_are(Integral, [self.bits]) and 1 <= self.bits <= 32):
            raise UserError(f"intensity.bits is {self.bits!r}; give 1 to 32.")
        for key in ("window", "percentile"):
            limits = getattr(self, key)
            if limits is not None and not (_are(Real, limits) and len(limits) == 2 and limits[0] < limits[1]):
                raise UserError(f"intensity.{key} is {limits!r}; give [low, high], numbers with low below high.")
        if self.percentile is not None and not (self.percentile[0] >= 0 and self.percentile[1] <= 100):
            raise UserError(f"intensity.percentile is {self.percentile!r}; give numbers from 0 to 100.")
        if not isinstance(self.zscore, bool):
            raise UserError(f"intensity.zscore is {self.zscore!r}; give true or false.")
        if self.channels is not None and not (
            _are(Integral, self.channels) and self.channels and min(self.channels) >= 0
        ):
            raise UserError(f"intensity.channels is {self.channels!r}; give a list of the file's channels, from 0.")

    @classmethod
    def of(cls, mapping: object) -> "Intensity":
        """The Intensity of a card's or config's mapping; raises UserError for an unknown key and a wrong value."""
        if not isinstance(mapping, Mapping):
            raise UserError(f"intensity is {mapping!r}; give a mapping such as {{bits: 12}}.")
        keys = [field.name for field in fields(cls)]
        for key in mapping:
            if key not in keys:
                raise UserError(
                    f"intensity has the unknown key {key!r}{nearest(key, keys) or '.'} Keys are {', '.join(keys)}."
                )
        return cls(**mapping)

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """(H, W, C) in file values -> pixels: uint8 stays uint8 where nothing is set (its range is [0, 1] by /255)."""
        if self.bits is not None:
            return array.astype(np.float32) / np.float32(2**self.bits - 1)
        if self.window is not None:
            return _windowed(array, *self.window)
        if self.percentile is not None:
            return _windowed(array, *np.percentile(array, self.percentile))
        if self.zscore:
            values = array.astype(np.float32)
            return Standardised(values.mean((0, 1)), values.std((0, 1)))(values)
        if array.dtype == np.uint8:
            return array
        if array.dtype == np.uint16:
            return array.astype(np.float32) / np.float32(65535)
        return array.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Standardised:
    """z-scores by a mean and standard deviation per channel that are known: part of an image like the whole."""

    mean: np.ndarray
    deviation: np.ndarray
    channels: Sequence[int] | None = None

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """(H, W, C) in file values -> (value - mean) / deviation; a flat channel is 0."""
        scores: np.ndarray = (array.astype(np.float32) - self.mean) / np.where(self.deviation == 0, 1, self.deviation)
        return scores


def read_image(
    source: str | Path | Image.Image | np.ndarray, intensity: Intensity | None = None, channels: int = 3
) -> np.ndarray:
    """The pixels (H, W, channels) of a file, PIL image or array (H, W[, C]), upright as a viewer shows it.

    uint8 (0 to 255) from 8-bit sources without intensity, else float32: [0, 1], or what `intensity` gives. Grey is
    repeated, colour becomes luminance for channels=1, a fourth (or second) channel is dropped as alpha where fewer
    are wanted. Raises UserError for what can't be read, is empty, or has other channels.
    """
    intensity = intensity or Intensity()
    if isinstance(source, Image.Image):
        try:
            array, turn = pil_values(source), source.getexif().get(ORIENTATION, 1)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"The PIL image can't be read ({error}); its file may be truncated.") from None
        name = "The PIL image"
    elif isinstance(source, np.ndarray):
        array, turn, name = source, 1, "The array"
    else:
        (array, turn), name = read_stored(source), str(source)
    return stored_to_pixels(array, turn, intensity, channels, name)


def stored_to_pixels(
    array: np.ndarray, turn: int, intensity: Intensity | Standardised, channels: int, name: str
) -> np.ndarray:
    """The pixels (H, W, channels) of values as stored; `turn`: EXIF orientation; `name`: for the error's sentence."""
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "buif":
        raise UserError(
            f"{name} is {array.dtype} of shape {array.shape}; an image is (H, W) or (H, W, C) numbers, not empty."
        )
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    array = upright(array[..., None] if array.ndim == 2 else array, turn)
    return np.ascontiguousarray(intensity(choose_channels(array, intensity.channels, channels, name)))


def choose_channels(array: np.ndarray, chosen: Sequence[int] | None, channels: int, name: str) -> np.ndarray:
    """(H, W, C) as (H, W, channels): those chosen, or grey repeated, luminance, alpha dropped."""
    if chosen is not None:
        if max(chosen) >= array.shape[2]:
            raise UserError(
                f"{name} has {array.shape[2]} channel(s), but intensity.channels is {list(chosen)}, counted"
                " from 0; name channels that the file has."
            )
        array = array[..., list(chosen)]
    return _with_channels(array, channels, name)


def to_tensor(pixels: np.ndarray) -> "Tensor":
    """(H, W, C) pixels -> float32 (C, H, W), uint8 divided by 255."""
    import torch  # `zoo data check` reads images without it

    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return tensor.float().div_(255) if pixels.dtype == np.uint8 else tensor.float()


def _are(kind: type, values: Any) -> bool:
    """Whether it is a list of numbers of a kind; true and false are no numbers."""
    return isinstance(values, list | tuple) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


def _with_channels(array: np.ndarray, channels: int, name: str) -> np.ndarray:
    has = array.shape[2]
    if has in (2, 4) and channels in (1, 3):
        array, has = array[..., : has - 1], has - 1
    if has == channels:
        return array
    if has == 1 and channels == 3:
        return np.repeat(array, 3, axis=2)
    if has == 3 and channels == 1:
        grey = array.astype(np.float32) @ LUMINANCE
        return (grey.round() if array.dtype.kind in "ui" else grey).astype(array.dtype)[..., None]
    raise UserError(
        f"{name} has {has} channel(s), but {channels} are wanted; set `channels` of the data card"
        " (in_channels of the model), or choose some with intensity.channels."
    )


def _windowed(array: np.ndarray, low: float, high: float) -> np.ndarray:
    span = np.float32(high - low) if high > low else np.float32(1)  # a flat image is 0
    pixels: np.ndarray = (array.astype(np.float32) - np.float32(low)) / span
    return pixels.clip(0, 1)
