"""One mask file into class ids, by the card's `values`; or into a soft mask, the share of foreground."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from zoo.datasets.card import Card
from zoo.datasets.pixels import read_stored, unreadable, upright
from zoo.datasets.tiff import ORIENTATION
from zoo.datasets.values import Values, parse_values
from zoo.errors import UserError

UNMAPPED = -(2**31)
JPEG = (".jpg", ".jpeg")
NOISE = 12  # largest difference between channels that JPEG leaves in a grey picture stored as colour; 0 elsewhere


def read_mask(
    path: str | Path, card: Card, image_size: tuple[int, int] | None = None, image_turn: int = 1
) -> np.ndarray:
    """The class ids (H, W), int32, of a mask file, upright; ignored pixels are `card.ignore_index`.

    image_size, image_turn: (H, W) as stored and EXIF orientation of its image. A mask without an orientation of its
    own that has the image's stored size is turned with the image. Raises UserError for values without a class, for a
    colour picture where numbers are expected, and for another size than the image's.
    """
    values = _upright_values(Path(path), card, image_size, image_turn)
    return to_ids(values, card, Path(path))


def read_soft_mask(
    path: str | Path, card: Card, image_size: tuple[int, int] | None = None, image_turn: int = 1
) -> np.ndarray:
    """The share of foreground (H, W), uint8 with 255 = all, of a binary mask; with `values: grey` the file's own greys.

    Raises UserError as `read_mask` does, and for ignored pixels and classes above 1, which a share can't express.
    """
    values = _upright_values(Path(path), card, image_size, image_turn)
    if parse_values(card.values).kind == "grey":
        return _foreground_share(values, Path(path))
    ids = to_ids(values, card, Path(path))
    if np.any(ids > 1) or np.any(ids == card.ignore_index):
        raise UserError(
            f"{path} has ignored pixels or classes above 1; soft masks are for binary data, set soft_masks: false."
        )
    return (ids * 255).astype(np.uint8)


def read_labels(path: Path) -> tuple[np.ndarray, np.ndarray | None, int]:
    """(a mask's values as stored (H, W) or (H, W, 3), its palette (256, 3) if any, EXIF orientation).

    Palette files give their indices, 1-bit files booleans; alpha is dropped, and colour whose channels are equal up to
    JPEG's noise becomes one channel.
    """
    if path.suffix.lower() != ".npy":
        try:
            with Image.open(path) as image:
                if image.mode in ("P", "1"):
                    array = np.array(image)  # first: loading a TIFF turns it and forgets the orientation
                    turn = image.getexif().get(ORIENTATION, 1)
                    return array, _palette(image), turn
        except UnidentifiedImageError:
            pass  # read_stored says so, or reads it by other means
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise unreadable(path, error) from None
    array, turn = read_stored(path)
    if array.ndim == 3 and array.shape[2] in (2, 4):
        array = array[..., :-1]
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[2] != 3:
        raise UserError(f"{path} has {array.shape[2]} channels; a mask has one, or three for colours.")
    noise = NOISE if path.suffix.lower() in JPEG else 0
    if array.ndim == 3 and np.ptp(array, axis=2).max(initial=0) <= noise:
        array = array[..., 1]  # green: the channel nearest to JPEG's luminance
    if array.dtype.kind == "f":
        if not np.array_equal(array, array.round()):
            raise UserError(f"{path} holds fractions; a mask holds class numbers or colours.")
        array = array.astype(np.int32)
    return array, None, turn


def _palette(image: Image.Image) -> np.ndarray | None:
    """(256, 3) uint8 of a palette image, black where its file names fewer colours; None of another."""
    named = image.getpalette("RGB") if image.mode == "P" else None
    if not named:
        return None
    colors: np.ndarray = np.zeros((256, 3), np.uint8)
    colors.reshape(-1)[: len(named)] = named
    return colors


def to_ids(array: np.ndarray, card: Card, path: Path) -> np.ndarray:
    """Class ids (H, W), int32, of a mask's values (H, W) or colours (H, W, 3)."""
    ids = known_ids(array, card, path)
    wrong = ids == UNMAPPED
    if wrong.any():
        raise _unmapped(array[wrong], card, path, parse_values(card.values))
    return ids


def known_ids(array: np.ndarray, card: Card, path: Path) -> np.ndarray:
    """As `to_ids`, with UNMAPPED for values that have no class."""
    values = parse_values(card.values)
    if values.kind == "colors":
        ids = _colors_to_ids(array, values, card.ignore_index)
    elif values.kind == "grey":
        ids = (_foreground_share(array, path) >= 128).astype(np.int32)
    else:
        ids = _grey_levels(array, path).astype(np.int32)
        if values.kind == "levels":
            table = _level_table(values, card.ignore_index)
            ids = np.where((ids >= 0) & (ids < len(table)), table[ids.clip(0, len(table) - 1)], UNMAPPED)
    if card.num_classes is not None:
        ids[((ids < 0) | (ids >= max(card.num_classes, 2))) & (ids != card.ignore_index)] = UNMAPPED
    return ids


def _upright_values(path: Path, card: Card, image_size: tuple[int, int] | None, image_turn: int) -> np.ndarray:
    array, palette, turn = read_labels(path)
    if parse_values(card.values).kind == "colors" and array.ndim == 2:
        array = array * np.uint8(255) if array.dtype == bool else array
        array = palette[array] if palette is not None else np.repeat(array[..., None], 3, axis=2)
    if turn == 1 and image_size == array.shape[:2]:
        turn = image_turn
    array = upright(array, turn)
    if image_size is not None:
        shown = image_size[::-1] if image_turn >= 5 else image_size
        if array.shape[:2] != shown:
            raise UserError(
                f"{path} is {array.shape[0]}x{array.shape[1]} (height x width), but its image is {shown[0]}x{shown[1]};"
                " make a mask of the image's size or take the pair out."
            )
    return array


def _foreground_share(array: np.ndarray, path: Path) -> np.ndarray:
    """Greys from 0 to 255, uint8; 1-bit files are 0 and 255."""
    levels = _grey_levels(array, path)
    if levels.dtype == bool:
        return levels * np.uint8(255)
    top = int(levels.max(initial=0))
    if top > 255 or (top == 1 and path.suffix.lower() not in JPEG):  # else all would be background, unnoticed
        share = "only 0 and 1" if top == 1 else f"values up to {top}"
        raise UserError(
            f"{path} holds {share}, but `values: grey` means 0 to 255; map what it holds:"
            f" --data.card.values '{{0: 0, {top}: 1}}'."
        )
    return levels.astype(np.uint8)


def _grey_levels(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim == 3:
        first = ", ".join("#{:02x}{:02x}{:02x}".format(*color) for color in np.unique(array.reshape(-1, 3), axis=0)[:3])
        raise UserError(
            f"{path} is a colour picture ({first}, ...), but the card expects numbers; map the colours:"
            ' --data.card.values \'{"#000000": 0, "#ff0000": 1}\'.'
        )
    return array


def _colors_to_ids(array: np.ndarray, values: Values, ignore_index: int) -> np.ndarray:
    codes = pack_colors(array)
    ids = np.full(codes.shape, UNMAPPED, np.int32)
    for (red, green, blue), target in values.colors:
        ids[codes == (red << 16 | green << 8 | blue)] = ignore_index if target is None else target
    return ids


def pack_colors(array: np.ndarray) -> np.ndarray:
    """RGB (..., 3) as one number for each colour."""
    wide = array.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


@lru_cache(maxsize=8)
def _level_table(values: Values, ignore_index: int) -> np.ndarray:
    table = np.full(max(last for _, last, _ in values.levels) + 1, UNMAPPED, np.int32)
    for first, last, target in values.levels:
        table[first : last + 1] = ignore_index if target is None else target
    return table


def _unmapped(wrong: np.ndarray, card: Card, path: Path, values: Values) -> UserError:
    found = np.unique(wrong, axis=0)
    some = ["#{:02x}{:02x}{:02x}".format(*value) if wrong.ndim == 2 else str(value) for value in found[:4]]
    share = f"{', '.join(some)}{', ...' if len(found) > 4 else ''}"
    if values.kind == "ids":
        top = max(card.num_classes or 2, 2) - 1
        why = f"the card {card.name!r} knows classes 0 to {top} and ignores {card.ignore_index}"
    else:
        why = f"`values` of the card {card.name!r} do not name {'it' if len(found) == 1 else 'them'}"
    return UserError(
        f"{path} holds the value{'s' * (len(found) > 1)} {share}, but {why}; map every value to a class or to ignore:"
        f" --data.card.values '{{{some[0] if wrong.ndim == 1 else chr(34) + some[0] + chr(34)}: ignore, ...}}'."
    )
