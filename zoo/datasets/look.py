"""Class values found by looking at the masks, and the resolved card: root, layout and number of classes known."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo.datasets.card import Card
from zoo.datasets.masks import JPEG, pack_colors, read_labels
from zoo.datasets.pixels import stored_size
from zoo.datasets.prepare import find_root
from zoo.datasets.progress import tracked
from zoo.datasets.splits import Pair, choose_layout, drop_maskless, split_pairs
from zoo.datasets.values import Color, parse_values
from zoo.errors import UserError

LIMIT = 200  # masks looked at
VOID = 255
LISTED = 20  # values, up to which a sentence names all of them
BLACK_AND_WHITE = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)


@dataclass(frozen=True)
class Found:
    """What masks hold: `values` for a card, the number of classes (1 = binary), colours by class id, and a sentence."""

    values: dict[str, Any] | str | None
    num_classes: int
    colors: tuple[Color, ...]
    sentence: str


def resolve(card: Card, *, skip: bool = False) -> Card:
    """The card with its root found (files made where it can), its layout chosen, and `num_classes` known.

    With `values: look` (or no classes and no values at all) up to 200 masks of all splits are read; `found` then says
    in a sentence what they hold and how to override it. A resolved card is returned as it is. skip: masks that can't
    be read are left out, and counted in the sentence.
    Raises UserError for missing files and for masks that no rule explains.
    """
    card, note = locate(card)
    if card.num_classes is not None and parse_values(card.values).kind != "look":
        return card
    masks = [pair.mask for pairs in split_pairs(card).values() for pair in pairs]
    found = look(masks, num_classes=card.num_classes, skip=skip)
    if card.num_classes is not None and found.num_classes > card.num_classes:
        raise UserError(
            f"The card {card.name!r} says {card.num_classes} class(es), but the masks differ. {found.sentence}"
        )
    return replace(
        card,
        values=found.values,
        num_classes=card.num_classes or found.num_classes,
        colors=card.colors or found.colors,
        found=f"{found.sentence} {note}".strip(),
    )


def locate(card: Card) -> tuple[Card, str]:
    """The card with its root found and its layout chosen, and a note on folders without masks; no file is read.

    Raises UserError as `find_root` does.
    """
    root = find_root(card)
    card = replace(card, root=str(root), layouts=(), prepare=None, **choose_layout(card, root))
    card, note = drop_maskless(card)
    return replace(card, found=card.found or note), note


def check_sizes(pairs: Iterable[Pair]) -> None:
    """Compare the sizes of images and masks by their headers (0.1 ms a pair). Raises UserError for differences.

    Height and width may be exchanged, as an EXIF orientation does: that shows when the pair is read.
    """
    wrong = []
    for pair in tracked(list(pairs), "Comparing sizes"):
        image, mask = stored_size(pair.image), stored_size(pair.mask)
        if image and mask and sorted(image) != sorted(mask):
            wrong.append(f"{pair.mask} is {mask[0]}x{mask[1]}, its image {image[0]}x{image[1]}")
    if wrong:
        many = f"{len(wrong)} masks have" if len(wrong) > 1 else "1 mask has"
        raise UserError(
            f"{many} another size (height x width) than the image: {'; '.join(wrong[:3])}{'; ...' * (len(wrong) > 3)}."
            " Make masks of the images' sizes or take the pairs out."
        )


def look(masks: Sequence[Path], limit: int = LIMIT, num_classes: int | None = None, *, skip: bool = False) -> Found:
    """What up to `limit` masks, evenly spread over the list, hold; num_classes: at least so many, where it is known.

    Numbers: two values are background and foreground, the lower first (greys between, as JPEG leaves them, count by
    the middle); 0..K-1 are K classes, 255 beside them is ignored; 1..K and evenly stretched greys are classes in
    order. Palettes count by index as long as an index has one colour in all files, else by colour. Colours are classes
    in the order of (red, green, blue).
    Raises UserError for anything else, and for a mask that can't be read unless `skip` leaves it out.
    """
    step = max(1, -(-len(masks) // limit))
    chosen = list(masks)[::step]
    counts: np.ndarray = np.zeros(65536, np.int64)  # pixels of each number in grey files
    indices: np.ndarray = np.zeros(65536, np.int64)  # the same of palette and 1-bit files
    colors = np.zeros(1 << 24, bool)
    named: set[tuple[int, int]] = set()  # (index, colour) of these
    palette: np.ndarray | None = None
    lossy = False
    unread: list[Path] = []
    for path in tracked(chosen, "Looking at masks"):
        try:
            array, own_palette, _ = read_labels(path)
        except UserError:
            unread.append(path)
            if skip and len(unread) < len(chosen):
                continue
            raise
        lossy |= path.suffix.lower() in JPEG
        palette = own_palette if own_palette is not None else palette
        if own_palette is not None or array.dtype == bool:
            meaning = BLACK_AND_WHITE if own_palette is None else own_palette
            used: np.ndarray = np.bincount(array.ravel().astype(np.uint8), minlength=256)
            indices[:256] += used
            named |= {(int(i), int(pack_colors(meaning[i]))) for i in np.flatnonzero(used)}
        elif array.ndim == 3:
            colors[pack_colors(array)] = True
        elif array.min(initial=0) < 0 or array.max(initial=0) > 65535:
            raise UserError(f"{path} holds numbers outside 0 to 65535; masks hold class numbers or colours.")
        else:
            counts += np.bincount(array.ravel().astype(np.int64), minlength=65536)
    seen = f"Looked at {len(chosen)} of {len(masks)} mask{'s' * (len(masks) != 1)}"
    if unread:
        seen += f" ({len(unread)} of which can't be read and {'is' if len(unread) == 1 else 'are'} left out)"
    example = next((path for path in chosen if path not in set(unread)), Path())
    contradicting = len(named) > len({index for index, _ in named})
    if contradicting or colors.any():
        colors[[code for _, code in named]] = True
        colors[np.flatnonzero(counts[:256]) * 0x010101] = True  # a black mask looks like a grey one
        return from_colors(np.flatnonzero(colors).tolist(), seen, example)
    return from_numbers(counts + indices, seen, lossy, palette, example, num_classes or 0)


def from_numbers(
    counts: np.ndarray, seen: str, lossy: bool, palette: np.ndarray | None, example: Path, at_least: int
) -> Found:
    """What masks of numbers hold: counts (65536,) pixels of each. Raises UserError where no rule explains them."""
    values = [int(v) for v in np.flatnonzero(counts)]
    if len(values) < 2:
        raise UserError(
            f"{seen}: every pixel is {values[0] if values else 'missing'}, so there is nothing to learn; give"
            " masks with background and foreground, or map what others hold: --data.card.values '{0: 0, 255: 1}'."
        )
    if values == [0, VOID]:
        return Found(
            "grey", 1, (), f"{seen}: 0 and 255, so binary, 255 is the foreground. {_override('{0: 0, 255: 1}')}"
        )
    if _two_ended(counts, values, lossy):
        text = "greys between 0 and 255, so binary, 128 and above is the foreground."
        return Found("grey", 1, (), f"{seen}: {text} {_override('{0-127: 0, 128-255: 1}')}")
    if lossy:
        raise UserError(
            f"{seen}: JPEG with {len(values)} grey values, and JPEG does not keep class numbers; save masks as PNG, or"
            " map ranges: --data.card.values '{0-63: 0, 64-191: 1, 192-255: 2}'."
        )
    small = [v for v in values if v != VOID]
    if len(values) == 2 and at_least <= 2 and values not in ([0, 1], [1, 2]):
        return _in_order({str(value): i for i, value in enumerate(values)}, f"{values[0]} and {values[1]}", seen, ())
    if small[0] in (0, 1) and small[-1] < max(2 * len(small), 21):
        return _from_ids(small, VOID in values, seen, palette, at_least)
    if len(values) <= 64:
        mapping = {str(value): i for i, value in enumerate(values)}
        return _in_order(mapping, _few(list(mapping)), seen, ())
    raise UserError(
        f"{seen}: {len(values)} different values up to {values[-1]} (e.g. in {example}), too many for classes; they may"
        " be instance numbers or photographs. Map them: --data.card.values '{0: 0, 1-65535: 1}'."
    )


def _two_ended(counts: np.ndarray, values: list[int], lossy: bool) -> bool:
    """Greys that crowd at 0 and 255, as JPEG and smoothed edges leave them."""
    if values[-1] > 255 or values[-1] < 192 or values[0] > 63:
        return False
    if not lossy and not (sum(48 <= v < 208 for v in values) >= 8 and sum(208 <= v < 255 for v in values) >= 3):
        return False  # class numbers with 255 as void have nothing just below it
    return bool(counts[48:208].sum() <= 0.1 * counts[:256].sum() and counts[208:256].sum() > 0)


def _from_ids(small: list[int], void: bool, seen: str, palette: np.ndarray | None, at_least: int) -> Found:
    """Class numbers from 0 or 1 on; a gap is a class that these masks do not show.

    255 is ignored also where these masks do not show it: it is rare, and masks not looked at may hold it.
    """
    number = max(small[-1] + 1, at_least)
    ignored = ", 255 is ignored" if void else ""
    colors = tuple((int(r), int(g), int(b)) for r, g, b in palette[:number]) if palette is not None else ()
    rest: dict[str, Any] = {str(VOID): "ignore"} if number <= VOID else {}
    if small[0] == 1 and small == list(range(1, number)) and len(small) > 1:
        mapping = {str(value): value - 1 for value in small} | rest
        return _in_order(mapping, f"1 to {number - 1}{ignored}", seen, colors[1:])
    mapping = {str(value): value for value in range(number)} | rest
    if number <= 2:
        return Found(mapping, 1, (), f"{seen}: 0 and 1{ignored}, so binary, 1 is the foreground. {_override(mapping)}")
    text = f"{seen}: class numbers 0 to {number - 1}{ignored}, so {number} classes. {_override(mapping)}"
    return Found(mapping, number, colors, text)


def from_colors(codes: list[int], seen: str, example: Path) -> Found:
    """What masks of colours hold: classes in the order of the colours. Raises UserError for more than 256."""
    if len(codes) > 256:
        raise UserError(
            f"{seen}: {len(codes)} different colours (e.g. in {example}), too many for classes; JPEG and smoothed edges"
            " mix colours. Save masks as PNG with one colour for each class."
        )
    mapping = {f"#{code:06x}": i for i, code in enumerate(codes)}
    colors = tuple((code >> 16, code >> 8 & 255, code & 255) for code in codes)
    return _in_order(mapping, f"the colours {_few(list(mapping))}", seen, colors)


def _in_order(mapping: dict[str, Any], what: str, seen: str, colors: tuple[Color, ...]) -> Found:
    """Classes in the order of the values; two of them are background and foreground."""
    number = 1 + max(target for target in mapping.values() if target != "ignore")
    if number == 1:
        raise UserError(f"{seen}: {what} alone, so there is nothing to learn; give masks with at least two classes.")
    kind = "binary, the second is the foreground" if number == 2 else f"{number} classes in this order"
    colors = () if number == 2 else colors
    return Found(mapping, 1 if number == 2 else number, colors, f"{seen}: {what}, so {kind}. {_override(mapping)}")


def _override(mapping: str | dict[str, Any]) -> str:
    """How to say what values mean; of many numbers, which may be those of objects, how to make them one foreground."""
    text = mapping if isinstance(mapping, str) else _yaml(mapping)
    numbers = [key for key in mapping if mapping[key] != "ignore"] if isinstance(mapping, dict) else []
    if len(numbers) <= LISTED:
        return f"If that is wrong: --data.card.values '{text}'"
    text = _yaml({key: mapping[key] for key in numbers[:3]})  # type: ignore[index]
    told = f"If that is wrong: --data.card.values '{text[:-1]}, ...}}'"
    if numbers[0].startswith("#"):
        return told
    one = "0: 0, 1-65535: 1" if int(numbers[-1]) >= VOID else "0: 0, 1-254: 1, 255: ignore"
    return f"{told}. If they are instance numbers, one foreground: --data.card.values '{{{one}}}'"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= LISTED else [*names[:3], "...", names[-1]])


def _yaml(mapping: Any) -> str:
    return "{" + ", ".join(f'"{k}": {v}' if k.startswith("#") else f"{k}: {v}" for k, v in mapping.items()) + "}"
