"""Every image and mask read once, in threads, and what a check of the data needs to know of each."""

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from zoo.datasets.card import Card
from zoo.datasets.intensity import Intensity, choose_channels, stored_to_pixels
from zoo.datasets.masks import JPEG, pack_colors, read_labels
from zoo.datasets.pixels import read_stored, unreadable, upright
from zoo.datasets.progress import tracked
from zoo.datasets.splits import Pair
from zoo.datasets.tiff import ORIENTATION
from zoo.errors import UserError

THUMB = (8, 9)  # height and width: 8 x 8 differences of neighbours
DRAFT = 32  # pixels, at least, that a JPEG is decoded to


@dataclass(frozen=True)
class ImageFacts:
    """shown, stored: (H, W) after and before turning; turn: EXIF orientation; digest: of the file's bytes."""

    shown: tuple[int, int]
    stored: tuple[int, int]
    turn: int
    digest: bytes
    thumb: np.ndarray
    """(8, 9) uint8, grey"""
    peak: int | None
    """the largest value of the channels that are taken; None where it is no 16-bit image"""


@dataclass(frozen=True)
class MaskFacts:
    """What a mask holds, as `masks.read_labels` reads it: values and the number of pixels of each.

    values (N,): numbers or palette indices; 0 and 1 of 1-bit files; 0xRRGGBB of colours. colors (N,): 0xRRGGBB of the
    values of palette and 1-bit files.
    """

    size: tuple[int, int]
    turn: int
    kind: Literal["numbers", "palette", "bits", "colors"]
    values: np.ndarray
    counts: np.ndarray
    colors: np.ndarray | None
    palette: np.ndarray | None
    lossy: bool

    def shown(self, image: ImageFacts) -> tuple[int, int]:
        """(H, W) upright; without an orientation of its own, a mask of the image's stored size turns with it."""
        turn = image.turn if self.turn == 1 and self.size == image.stored else self.turn
        return self.size[::-1] if turn >= 5 else self.size


@dataclass(frozen=True)
class Scan:
    """The facts of a pair, None for a file that can't be read; errors: what was said of it, by file."""

    image: ImageFacts | None
    mask: MaskFacts | None
    errors: dict[Path, str]


def scan(pairs: Sequence[Pair], card: Card, num_workers: int) -> list[Scan]:
    """The facts of each pair, read by `num_workers` threads (0: by this one), with a progress bar."""
    intensity = Intensity.of(card.intensity)

    def read(pair: Pair) -> Scan:
        return scan_pair(pair, intensity, card.channels)

    if not num_workers:
        return [read(pair) for pair in tracked(pairs, "Reading images and masks")]
    pool = ThreadPoolExecutor(num_workers)  # decoding holds no lock of Python's
    try:
        futures = [pool.submit(read, pair) for pair in pairs]
        return [future.result() for future in tracked(futures, "Reading images and masks")]
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the files in work alone


def scan_pair(pair: Pair, intensity: Intensity, channels: int) -> Scan:
    """The facts of one pair; intensity, channels: what the card makes of the image, tried on its first pixel."""
    errors: dict[Path, str] = {}
    image = mask = None
    try:
        image = image_facts(pair.image, intensity, channels)
    except UserError as error:
        errors[pair.image] = str(error)
    try:
        mask = mask_facts(pair.mask)
    except UserError as error:
        errors[pair.mask] = str(error)
    return Scan(image, mask, errors)


def image_facts(path: Path, intensity: Intensity, channels: int) -> ImageFacts:
    """The facts of an image file. A JPEG is decoded at an eighth of its size, all bytes of it.

    Raises UserError for what can't be read, and for channels that the card doesn't take.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    peak = None
    if path.suffix.lower() in JPEG and (small := _small_jpeg(path, content)):
        size, first, turn, grey = small
        stored_to_pixels(first, 1, intensity, channels, str(path))  # raises as it would in training
    else:
        stored, turn = read_stored(path)
        stored_to_pixels(stored[:1, :1], 1, intensity, channels, str(path))
        if stored.dtype.kind == "f" and not np.isfinite(stored).all():
            raise UserError(f"{path} holds NaN or infinite values; replace it or take it out.")
        size, grey = (stored.shape[0], stored.shape[1]), _grey(stored)
        if stored.dtype == np.uint16:
            layers = stored[..., None] if stored.ndim == 2 else stored
            peak = int(choose_channels(layers, intensity.channels, channels, str(path)).max())
    thumb = Image.fromarray(upright(grey, turn)).resize(THUMB[::-1], Image.Resampling.BOX)
    shown = size[::-1] if turn >= 5 else size
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return ImageFacts(shown, size, turn, digest, np.asarray(thumb), peak)


def mask_facts(path: Path) -> MaskFacts:
    """The facts of a mask file. Raises UserError for what can't be read or holds neither numbers nor colours."""
    array, palette, turn = read_labels(path)
    size = (array.shape[0], array.shape[1])
    if not array.size:
        raise UserError(f"{path} is empty ({size[0]}x{size[1]}); replace it or take it out.")
    colored = array.ndim == 3
    values, counts = _counted(pack_colors(array) if colored else array)
    if not colored and (values[0] < 0 or values[-1] > 65535):
        raise UserError(f"{path} holds numbers outside 0 to 65535; masks hold class numbers or colours.")
    lossy = path.suffix.lower() in JPEG
    if palette is not None:
        return MaskFacts(size, turn, "palette", values, counts, pack_colors(palette)[values], palette, lossy)
    if array.dtype == bool:
        return MaskFacts(size, turn, "bits", values, counts, values * 0xFFFFFF, None, lossy)
    return MaskFacts(size, turn, "colors" if colored else "numbers", values, counts, None, None, lossy)


def _counted(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the different values, sorted; how often each occurs)"""
    flat = array.ravel()
    if flat.dtype in (np.uint8, np.bool_):
        every = np.bincount(flat, minlength=256)
        values = np.flatnonzero(every)
        return values, every[values]
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))  # masks have few borders: sorting is fast
    lengths = np.diff(starts, append=len(flat))
    values, which = np.unique(flat[starts], return_inverse=True)
    return values.astype(np.int64), np.bincount(which, weights=lengths).astype(np.int64)


def _small_jpeg(path: Path, content: bytes) -> tuple[tuple[int, int], np.ndarray, int, np.ndarray] | None:
    """((H, W), a pixel with the file's channels, orientation, the luminance made small); None for what is no JPEG."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format not in ("JPEG", "MPO"):
                return None
            size, bands = (image.height, image.width), len(image.getbands())
            first = np.zeros((1, 1, min(bands, 3)), np.uint8)  # CMYK becomes RGB
            image.draft("L", (DRAFT, DRAFT))
            grey = np.asarray(image.convert("L"))
            return size, first, image.getexif().get(ORIENTATION, 1), grey
    except UnidentifiedImageError:
        return None  # read_stored says so
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise unreadable(path, error) from None


def _grey(array: np.ndarray) -> np.ndarray:
    """(h, w) uint8 of stored values: brightest white, darkest black where they are not of 8 bits."""
    step = max(1, min(array.shape[:2]) // 512)
    array = array[::step, ::step]
    if array.ndim == 3:
        array = array[..., :3].mean(axis=2) if array.shape[2] > 2 else array[..., 0]
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype != np.uint8 and (array.dtype.kind != "f" or array.max(initial=0) > 255 or array.min(initial=0) < 0):
        low, high = float(array.min()), float(array.max())
        array = (array.astype(np.float64) - low) / max(high - low, 1e-12) * 255
    return array.clip(0, 255).astype(np.uint8)
