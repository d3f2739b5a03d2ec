"""The first page of a TIFF by tifffile, where its values are what is seen: Pillow and OpenCV misread many."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".tif", ".tiff")
ORIENTATION = 0x0112  # the EXIF tag


@contextmanager
def first_page(path: Path) -> Iterator[Any]:
    """The first page as tifffile knows it, None for what is no TIFF; its file is open within."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # a broken file's sentence comes from here
    try:
        file = tifffile.TiffFile(path)
    except OSError:
        raise
    except Exception:  # what it is then, others tell
        yield None
        return
    with file:
        yield file.pages[0] if len(file.pages) else None


@contextmanager
def reopened(page: Any) -> Iterator[Any]:
    """The handle of a page's file, open within; between, a page that is kept holds no descriptor."""
    handle = page.parent.filehandle
    handle.open()
    try:
        yield handle
    finally:
        handle.close()


def is_plain(page: Any) -> bool:
    """Whether the page is grey or RGB in whole bytes, in two dimensions: no palette, bits, ink or inverted grey.

    Not with alpha that is multiplied in, which Pillow divides out again. Of YCbCr only JPEG, which is decoded to RGB.
    """
    import tifffile

    seen = {tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB}
    if page.compression == tifffile.COMPRESSION.JPEG and page.samplesperpixel == 3:
        seen.add(tifffile.PHOTOMETRIC.YCBCR)
    return bool(
        page.dtype is not None
        and page.dtype.kind in "uif"
        and page.bitspersample == 8 * page.dtype.itemsize
        and page.photometric in seen
        and page.imagedepth == 1
        and tifffile.EXTRASAMPLE.ASSOCALPHA not in page.extrasamples
    )


def is_decodable(page: Any) -> bool:
    """Whether the codec is here: LZW, JPEG and others need `pip install imagecodecs`."""
    if page.is_contiguous:
        return True
    try:
        page.decode(None, 0, jpegtables=page.jpegtables)
    except (ValueError, NotImplementedError):
        return False
    return True


def orientation(page: Any) -> int:
    """The EXIF orientation, 1 to 8."""
    return int(page.tags[ORIENTATION].value) if ORIENTATION in page.tags else 1


def page_values(page: Any) -> np.ndarray:
    """The values of a plain, decodable page as stored: (H, W), or (H, W, C) also where planes lie one by one.

    Doubles and halves become float32, signed bytes and 16 bits int32. What tifffile raises of broken files passes.
    """
    planes, _, height, width, samples = page.shaped
    parts = zip(page.dataoffsets, page.databytecounts, strict=False)
    if not page.is_contiguous and any(start + count > page.parent.filehandle.size for start, count in parts):
        raise EOFError("it ends early")
    values = page.asarray(squeeze=False, maxworkers=1)[:, 0]
    values = values.transpose(1, 2, 0, 3).reshape(height, width, planes * samples)
    kind = {"f": np.float32, "i": np.int32}.get(values.dtype.kind, values.dtype)
    values = np.ascontiguousarray(values.astype(kind, copy=False))
    return values[..., 0] if values.shape[2] == 1 else values
