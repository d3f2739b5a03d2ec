"""Image files: which there are, and one of them into an array.

tifffile reads plain TIFFs, Pillow where it keeps the depth, OpenCV 16-bit colour, NumPy .npy.
"""

import glob
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from zoo.datasets import tiff
from zoo.datasets.tiff import ORIENTATION
from zoo.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".npy")
MOST_PIXELS = 2**30  # a phone takes 2e8, which Pillow refuses by default as a bomb; OpenCV's own limit is this one too
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow warns above this and refuses above twice as many
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")  # a broken file raises as well
DEEP = ("RGB", "RGBA", "RGBX", "LA", "CMYK")  # modes that Pillow cuts to 8 bits


def find_images(where: str | Path) -> Iterator[Path]:
    """The image files of a folder (subfolders too), a glob or a file's path, in the order of their names.

    Raises UserError where there is none, and for a folder that may not be read.
    """
    path = Path(where).expanduser()
    if os.path.isdir(path):
        if not os.access(path, os.R_OK | os.X_OK):
            raise UserError(f"The folder {where} may not be read; give yourself the permission to (chmod u+rx).")
        files = [
            p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
        ]
    elif os.path.exists(path):
        files = [path]
    else:
        files = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).suffix.lower() in SUFFIXES]
    if not files:
        what = "The folder holds no images" if path.is_dir() else "There is no file, folder or pattern with images"
        raise UserError(f"{what}: {where}; image files end in {', '.join(SUFFIXES)}.")
    return iter(sorted(files))


def stored_size(path: Path) -> tuple[int, int] | None:
    """(H, W) as the file's header says it, before any turning; None where the header alone does not tell."""
    try:
        if path.suffix.lower() == ".npy":
            shape = np.load(path, mmap_mode="r").shape
            return (shape[0], shape[1]) if len(shape) in (2, 3) else None
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return None  # reading the file says what is wrong with it


def read_stored(path: str | Path) -> tuple[np.ndarray, int]:
    """(the file's values as stored (H, W) or (H, W, C), EXIF orientation 1 to 8); the first page of several.

    uint8, uint16, int32, float32 or, for .npy, any number; 1-bit files are 0 and 255, palettes and CMYK become RGB
    (RGBA where the palette has transparency). Raises UserError for what is missing, truncated or no image.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        return _read_npy(path), 1
    if path.suffix.lower() in tiff.SUFFIXES:
        return _read_tiff(path)
    try:
        return _read_pillow(path)
    except UnidentifiedImageError:
        raise UserError(f"{path} is no image that can be read; replace it or take it out.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise unreadable(path, error) from None


def pil_values(image: Image.Image) -> np.ndarray:
    """A PIL image's values (H, W) or (H, W, C), palettes and rarer modes as RGB, 1-bit as 0 and 255."""
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode not in ("L", "LA", "RGB", "RGBA", "I", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    array = np.array(image)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # big-endian 16-bit TIFFs keep their order
    # PNG has no 32 bits: Pillow before 10.3 opens its 16-bit grey as mode I
    return array.astype(np.uint16) if image.mode == "I" and image.format == "PNG" else array


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """The array (H, W, ...) turned as the EXIF orientation says, so that it is seen as a viewer shows it."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def unreadable(path: Path, error: Exception) -> UserError:
    """The sentence for a file that exists in part or not at all."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"There is no file {path}.")
    if isinstance(error, PermissionError):
        return UserError(f"{path} may not be read; give yourself the permission to (chmod u+r).")
    if isinstance(error, Image.DecompressionBombError):
        return UserError(f"{path} has more than {MOST_PIXELS} pixels; cut it into parts or make it smaller.")
    guess = "" if "truncated" in str(error) else "it may be truncated: "
    return UserError(f"{path} can't be read ({error}); {guess}replace it or take it out.")


def _read_pillow(path: Path) -> tuple[np.ndarray, int]:
    with Image.open(path) as image:
        deep = image.mode in DEEP and ";16" in str(image.tile)  # the raw mode, which loading forgets
        image.load()  # here a truncated file shows
        return (_read_cv2(path) if deep else pil_values(image)), image.getexif().get(ORIENTATION, 1)


def _read_tiff(path: Path) -> tuple[np.ndarray, int]:
    """By tifffile what it can decode and needs no colour management; else by Pillow, or else by OpenCV."""
    try:
        with tiff.first_page(path) as page:
            samples = page.samplesperpixel if page and tiff.is_plain(page) else None
            if samples and page.imagelength * page.imagewidth > MOST_PIXELS:
                raise Image.DecompressionBombError
            if samples and tiff.is_decodable(page):
                return upright(tiff.page_values(page), tiff.orientation(page)), 1
        try:
            array, turn = _read_pillow(path)
        except UnidentifiedImageError:
            array, turn = _read_cv2(path), 1
    except UserError:
        raise
    except Exception as error:  # whatever tifffile and the codecs say of broken bytes
        raise unreadable(path, error) from None
    if samples and array.size != samples * array.shape[0] * array.shape[1]:
        raise UserError(
            f"{path} has {samples} channels in a compression that needs a further package: pip install"
            " 'visionzoo[tiff]', or save it uncompressed."
        )
    return array, turn


def _read_cv2(path: Path) -> np.ndarray:
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a broken file's sentence comes from here
    array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise UserError(f"{path} is no image that can be read; replace it or take it out.")
    if array.ndim == 3 and array.shape[2] in (3, 4):
        array = array[..., [2, 1, 0, 3][: array.shape[2]]]  # OpenCV gives blue first
    return np.ascontiguousarray(array)


def _read_npy(path: Path) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, Warning) as error:
        raise unreadable(path, error) from None
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or array.dtype.kind not in "buif":
        raise UserError(f"{path} holds no numbers of shape (H, W) or (H, W, C); save the array of one image.")
    return array.astype(np.float32) if array.dtype == np.float64 else array
