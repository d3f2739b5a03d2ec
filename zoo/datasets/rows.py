"""A TIFF too large for memory as pixels, some rows at a time: the same values as `read_image` gives."""

from pathlib import Path
from typing import Any

import numpy as np

from zoo.datasets.intensity import Intensity, Standardised, choose_channels, stored_to_pixels
from zoo.datasets.tiff import SUFFIXES, first_page, is_decodable, is_plain, orientation, reopened
from zoo.errors import ImageError

KINDS = ("uint8", "uint16", "float32")
PASS = 2**24  # values that a pass over the image takes at once
LARGEST_PART = 2**26  # bytes of one strip or tile, decoded: a strip that is the whole image is no window


class Rows:
    """Pixels (H, W, C) by rows: `rows[a:b]` is (b - a, W, C), `rows.shape` and `rows.dtype` as an array's."""

    def __init__(self, path: Path, page: Any, intensity: Intensity, channels: int):
        self._path, self._page, self._channels = path, page, channels
        self._intensity: Intensity | Standardised = intensity
        self.length, self.width = int(page.imagelength), int(page.imagewidth)
        if intensity.percentile is not None or intensity.zscore:
            self._intensity = _fitted(intensity, self)
        first = self[:1]
        self.shape, self.dtype = (self.length, self.width, first.shape[2]), first.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        pixels = stored_to_pixels(self.stored(rows), 1, self._intensity, self._channels, str(self._path))
        check_finite(pixels, str(self._path))
        return pixels

    def chosen(self, rows: slice) -> np.ndarray:
        """Rows in file values, of the channels that are taken."""
        return choose_channels(self.stored(rows), self._intensity.channels, self._channels, str(self._path))

    def stored(self, rows: slice) -> np.ndarray:
        """Rows (h, W, C) as they stand in the file. Raises ImageError where the file is truncated."""
        page, (start, stop, _) = self._page, rows.indices(self.length)
        out = np.empty((stop - start, self.width, page.samplesperpixel), page.dtype)
        try:
            with reopened(page) as file:
                if page.is_contiguous:
                    file.seek(page.dataoffsets[0] + start * out[0].nbytes)
                    kind = np.dtype(page.parent.byteorder + page.dtype.char)
                    out[...] = file.read_array(kind, out.size).reshape(out.shape)
                    return out
                tall, across = page.chunks[0], page.chunked[1]
                for index in range(start // tall * across, -(-stop // tall) * across):
                    file.seek(page.dataoffsets[index])
                    coded = file.read(page.databytecounts[index])
                    if len(coded) < page.databytecounts[index]:
                        raise EOFError("it ends early")
                    part, (_, _, y, x, _), shape = page.decode(coded or None, index, jpegtables=page.jpegtables)
                    top, bottom = max(y, start), min(y + shape[1], stop)
                    where = out[top - start : bottom - start, x : x + shape[2]]
                    where[...] = page.nodata if part is None else part[0, top - y : bottom - y, : where.shape[1]]
        except Exception as error:  # whatever tifffile and the codecs say of broken bytes
            raise ImageError(f"{self._path} can't be read ({error}); it may be truncated: replace it.") from None
        return out


def open_rows(path: Path, intensity: Intensity, channels: int, most: int) -> Rows | None:
    """The file by rows where it is a TIFF whose values take more than `most` bytes and can be read so; else None.

    Not by rows: planes one after the other, palettes, bits and inverted grey, a codec that isn't installed (`pip
    install imagecodecs` for LZW and JPEG), an EXIF orientation, and percentiles of what is neither 8 nor 16 bits.
    """
    if path.suffix.lower() not in SUFFIXES:
        return None
    try:
        with first_page(path) as page:
            if page is None or not _by_rows(page, intensity, most):
                return None
    except OSError:  # what it is then, reading it whole tells
        return None
    return Rows(path, page, intensity, channels)


def check_finite(pixels: np.ndarray, name: str) -> None:
    """Raise ImageError for NaN and infinite values, which would spread over the whole answer."""
    if pixels.dtype.kind == "f" and not np.isfinite([pixels.min(initial=0), pixels.max(initial=0)]).all():
        raise ImageError(f"{name} holds NaN or infinite values; replace it or take it out.")


def _by_rows(page: Any, intensity: Intensity, most: int) -> bool:
    """Whether the page takes more than `most` bytes and its rows can be read as `read_stored` would read them."""
    if (
        not is_plain(page)
        or page.size * page.dtype.itemsize <= most
        or page.dtype.name not in KINDS
        or page.planarconfig != 1
        or orientation(page) != 1
        or (intensity.percentile is not None and page.dtype.kind != "u")
        or not is_decodable(page)
    ):
        return False
    return page.is_contiguous or bool(np.prod(page.chunks) * page.dtype.itemsize <= LARGEST_PART)


def _fitted(intensity: Intensity, rows: Rows) -> Intensity | Standardised:
    """The intensity with what it needs of the whole image, found by passes over it."""
    step = max(1, PASS // (rows.width * 8))
    parts = [slice(start, start + step) for start in range(0, rows.length, step)]
    channels = None if intensity.channels is None else list(intensity.channels)
    if intensity.percentile is not None:
        counts = sum(np.bincount(rows.chosen(part).ravel(), minlength=2**16) for part in parts)
        low, high = (_percentile(np.asarray(counts), q) for q in intensity.percentile)
        return Intensity(window=[low, high if high > low else low + 1], channels=channels)
    count = rows.length * rows.width
    total: np.ndarray = np.zeros(1)
    squares: np.ndarray = np.zeros(1)
    for part in parts:
        values = rows.chosen(part).astype(np.float64)
        total = total + values.sum((0, 1))
    mean = total / count
    for part in parts:
        squares = squares + np.square(rows.chosen(part) - mean).sum((0, 1))
    return Standardised(mean.astype(np.float32), np.sqrt(squares / count).astype(np.float32), channels)


def _percentile(counts: np.ndarray, q: float) -> float:
    """np.percentile, linear, of values that are counted."""
    ends = counts.cumsum()
    place = q / 100 * (ends[-1] - 1)
    below, above = (int(np.searchsorted(ends, rank, side="right")) for rank in (np.floor(place), np.ceil(place)))
    return float(np.percentile([below, above], 100 * (place - np.floor(place))))
