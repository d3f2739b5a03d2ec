"""What all masks hold together, which of them don't fit the rest, and the values that would make sense of them.

`look.py` finds values among masks that it trusts; here one slip in a thousand masks is told from a class.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo.datasets.card import Card
from zoo.datasets.look import VOID, Found, from_colors, from_numbers
from zoo.datasets.masks import UNMAPPED, known_ids
from zoo.datasets.scan import MaskFacts
from zoo.datasets.values import parse_values
from zoo.errors import UserError

Masks = Mapping[Path, MaskFacts]

FEW = 5  # masks, below which a value that one of them holds alone is believed
RARE = 0.01  # the share of masks up to which a value may be a slip
SMOOTHED = 0.05  # the share of masks with smoothed edges up to which the others are class numbers
TWICE = "Some masks have 255 where others have 1: together 255 would pass for ignored, so both are the foreground."


@dataclass(frozen=True)
class Diagnosis:
    """card: with values and number of classes known; None where no rule explains the masks (`sentence` says why).

    odd: masks of another kind than the others, and of which; strays: value -> masks that hold it, though no class has
    it; values: what `values` of the card should be, None where they are right, and why if not for strays.
    """

    card: Card | None
    sentence: str
    odd: dict[Path, str] = field(default_factory=dict)
    strays: dict[str, list[Path]] = field(default_factory=dict)
    values: dict[Any, Any] | str | None = None
    why: str = ""


def diagnose(card: Card, masks: Masks) -> Diagnosis:
    """What the masks of a located card hold."""
    by_color, odd = _odd_ones(masks)
    usual = {path: mask for path, mask in masks.items() if path not in odd}
    looked, strays, sentence = _robustly_found(usual, by_color, card.num_classes)
    if parse_values(card.values).kind == "look" or card.num_classes is None:
        if looked is None:
            return Diagnosis(None, sentence, odd, strays)
        values: dict[Any, Any] | str | None = _twice_foreground(usual, looked.values)
        why = TWICE if values else ""
        if strays:
            values = _ignoring(replace(card, values=looked.values, num_classes=looked.num_classes), strays)
        known = replace(
            card,
            values=looked.values if values is None else values,
            num_classes=max(card.num_classes or 0, looked.num_classes),
            colors=card.colors or looked.colors,
        )
        return Diagnosis(known, sentence, odd, strays, values, why)
    unknown: dict[str, list[Path]] = defaultdict(list)
    odd = _other_kind(card, masks)
    for path, mask in masks.items():
        if path not in odd:
            for value in np.unique(mask.values[mask_ids(mask, card) == UNMAPPED]):
                unknown[_written(int(value), parse_values(card.values).kind == "colors")].append(path)
    wrong = {path for paths in unknown.values() for path in paths} | odd.keys()
    values, why = None, ""
    if looked and len(wrong) * 2 > len(masks):  # the card means something else
        values, odd, why = looked.values, {}, f"The card's values are not those of the masks. {sentence}"
    elif unknown:
        values = _ignoring(card, unknown)
    known = card if values is None else replace(card, values=values)
    if why and looked and looked.num_classes != card.num_classes:
        known = replace(known, num_classes=looked.num_classes, classes=(), colors=looked.colors)
    return Diagnosis(known, "", odd, dict(unknown), values, why)


def mask_ids(mask: MaskFacts, card: Card) -> np.ndarray:
    """The class id of each of a mask's values (N,), by the card; UNMAPPED where it has none."""
    values = mask.values
    colored = parse_values(card.values).kind == "colors"
    if colored:
        values = mask.colors if mask.colors is not None else values
        values = values * 0x010101 if mask.kind == "numbers" else values
    elif mask.kind == "colors":
        return np.full(len(values), UNMAPPED)
    if colored:
        row = np.stack([values >> 16 & 255, values >> 8 & 255, values & 255], axis=-1).astype(np.uint8)
    else:
        row = values.astype(bool if mask.kind == "bits" else np.int32)
    try:
        ids: np.ndarray = known_ids(row[None], card, Path("mask.jpg" if mask.lossy else "mask"))[0]
        return ids
    except UserError:  # `values: grey` of a file with only 0 and 1, or with values above 255
        return np.where(values == 0, 0, UNMAPPED)


def as_keys(values: Mapping[Any, Any] | str | None) -> Any:
    """`values` as YAML shows them best: numbers as numbers."""
    if not isinstance(values, Mapping):
        return values
    return {int(key) if str(key).isdigit() else key: target for key, target in values.items()}


def _odd_ones(masks: Masks) -> tuple[bool, dict[Path, str]]:
    """(whether most masks are colours, the masks of the other kind and why they are odd)."""
    colored = {path for path, mask in masks.items() if mask.kind == "colors"}
    named = {int(c) for mask in masks.values() if mask.colors is not None for c in mask.colors}
    shown = {int(c) for path in colored for c in masks[path].values}
    if colored and shown <= named and all(mask.kind != "numbers" for mask in masks.values()):
        return True, {}  # palettes and pictures of one set of colours
    by_color = 2 * len(colored) > len(masks)
    if by_color:
        grey = {p: m for p, m in masks.items() if m.kind == "numbers" and not set(m.values * 0x010101) <= shown}
        return True, {path: f"numbers ({_some(mask.values)}) among colours" for path, mask in grey.items()}
    return _contradicting(masks), {
        path: f"an RGB picture ({_some(masks[path].values, True)}) among class numbers"
        for path in masks
        if path in colored
    }


def _other_kind(card: Card, masks: Masks) -> dict[Path, str]:
    if parse_values(card.values).kind == "colors":
        return {}
    return {
        path: f"an RGB picture ({_some(mask.values, True)}), but the card expects numbers"
        for path, mask in masks.items()
        if mask.kind == "colors"
    }


def _robustly_found(
    masks: Masks, by_color: bool, at_least: int | None
) -> tuple[Found | None, dict[str, list[Path]], str]:
    """(what the masks hold without strays, the strays, a sentence)."""
    if not masks:
        return None, {}, "No mask can be read."
    holders: dict[int, list[Path]] = defaultdict(list)
    totals: Counter[int] = Counter()
    for path, mask in masks.items():
        values = mask.values
        if by_color:
            values = mask.colors if mask.colors is not None else values
            values = values * 0x010101 if mask.kind == "numbers" else values
        for value, count in zip(values.tolist(), mask.counts.tolist(), strict=True):
            holders[value].append(path)
            totals[value] += count
    seen, example = f"Read {len(masks)} mask{'s' * (len(masks) != 1)}", next(iter(masks))
    lossy = any(mask.lossy for mask in masks.values())
    palette = next((mask.palette for mask in masks.values() if mask.palette is not None), None)

    def decided(values: Sequence[int]) -> Found:
        if by_color:
            return from_colors(sorted(values), seen, example)
        counts = np.zeros(65536, np.int64)
        counts[list(values)] = [totals[value] for value in values]
        return from_numbers(counts, seen, lossy, palette, example, at_least or 0)

    try:
        found = decided(list(holders))
        if lossy or len(masks) < FEW:
            return found, {}, found.sentence
    except UserError as error:
        found, said = None, str(error)
    strays = _rare_colors(holders, totals, len(masks)) if by_color else _rare_numbers(holders, len(masks))
    smoothed = {path for value in strays for path in holders[value]}
    few = len(smoothed) <= max(1, SMOOTHED * len(masks))
    if found and found.values == "grey" and not (few and _are_ids(sorted(holders.keys() - strays - {VOID}))):
        return found, {}, found.sentence  # greys is what the masks are meant to be
    try:
        if strays and not lossy:
            usual = decided([value for value in holders if value not in strays])
            if found is None or found.values != "grey" or usual.values != "grey":
                return usual, {_written(v, by_color): holders[v] for v in sorted(strays)}, usual.sentence
    except UserError:
        pass  # the sentence on all of them says more
    return found, {}, found.sentence if found else said


def _rare_numbers(holders: Mapping[int, Sequence[Path]], masks: int) -> set[int]:
    """Values of one mask in a hundred, unless they lie among class numbers or continue them; 255 is void."""
    rare = {value for value, paths in holders.items() if len(paths) <= max(1, masks * RARE) and value != VOID}
    common = sorted(holders.keys() - rare - {VOID})
    if not common:
        return set()
    top = common[-1]
    if _are_ids(common):
        while top + 1 in rare:
            top += 1
        rare -= set(range(top + 1))
    return rare


def _are_ids(values: Sequence[int]) -> bool:
    """Whether sorted values are class numbers as `look` sees them."""
    return bool(values) and values[0] <= 1 and values[-1] < max(2 * len(values), 21)


def _rare_colors(holders: Mapping[int, Sequence[Path]], totals: Mapping[int, int], masks: int) -> set[int]:
    """Colours of one mask in a hundred and of one pixel in a thousand."""
    pixels = sum(totals.values())
    return {v for v, paths in holders.items() if len(paths) <= max(1, masks * RARE) and totals[v] <= pixels / 1000}


def _contradicting(masks: Masks) -> bool:
    """Whether one palette index has different colours in different files."""
    meaning: dict[int, int] = {}
    return any(
        meaning.setdefault(value, color) != color
        for mask in masks.values()
        if mask.colors is not None
        for value, color in zip(mask.values.tolist(), mask.colors.tolist(), strict=True)
    )


def _twice_foreground(masks: Masks, values: Any) -> dict[Any, Any] | None:
    """Values that take both 1 and 255 for the foreground, where some masks hold 0 and 1, others 0 and 255, none both.

    Each file alone is a sound mask; together 255 would pass for void.
    """
    sets = {tuple(mask.values.tolist()) for mask in masks.values()}
    if not isinstance(values, Mapping) or not {(0, 1), (0, 255)} <= sets <= {(0,), (1,), (255,), (0, 1), (0, 255)}:
        return None
    return {0: 0, 1: 1, 255: 1}


def _ignoring(card: Card, strays: Mapping[str, Sequence[Path]]) -> dict[Any, Any]:
    """The card's values with the strays ignored."""
    values = card.values
    if values is None:
        values = {number: number for number in range(max(card.num_classes or 2, 2))}
        values |= {card.ignore_index: "ignore"} if card.ignore_index >= len(values) else {}
    elif values == "grey":
        values = {0: 0, 1: 1} if strays.keys() == {"1"} else {0: 0, 255: 1}
    assert isinstance(values, dict)
    known = {str(key) for key in values}
    return {**values, **{value: "ignore" for value in strays if value not in known}}


def _written(value: int, colored: bool) -> str:
    return f"#{value:06x}" if colored else str(value)


def _some(values: np.ndarray, colored: bool = False) -> str:
    return ", ".join(_written(int(v), colored) for v in values[:3]) + ", ..." * (len(values) > 3)
