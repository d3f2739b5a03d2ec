"""The `values:` of a data card: what the numbers or colours in a mask file mean."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from zoo.errors import UserError

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Values:
    """How a mask file's values become class ids.

    kind "ids": they are ids already. "grey": 0 to 255 is the share of foreground, at least half of it (128) counts.
    "look": found out by looking at the masks. "levels": (first, last, id) for ranges of grey values or palette
    indices. "colors": (RGB, id). An id of None is ignored.
    """

    kind: Literal["ids", "grey", "look", "levels", "colors"] = "ids"
    levels: tuple[tuple[int, int, int | None], ...] = ()
    colors: tuple[tuple[Color, int | None], ...] = ()

    @property
    def top(self) -> int | None:
        """The highest class id that these values can give; None where they don't say."""
        ids = [i for *_, i in self.levels] + [i for _, i in self.colors]
        known = [i for i in ids if i is not None]
        return 1 if self.kind == "grey" else max(known, default=None)


def parse_values(values: Mapping[Any, Any] | str | None) -> Values:
    """The parsed `values:` of a card: null, "grey", "look", or a mapping from file value to class id or "ignore".

    A key is a number (0), a range ("128-255") or a colour ("128,0,64" or "#800040"). Raises UserError for others.
    """
    if values is None:
        return Values()
    if values == "grey":
        return Values("grey")
    if values == "look":
        return Values("look")
    if not isinstance(values, Mapping) or not values:
        raise UserError(f"values is {values!r}; give null, grey, look, or a mapping such as {{0: 0, 255: 1}}.")
    pairs = [(str(key).strip(), _class_id(key, target)) for key, target in values.items()]
    if all(_color(key) for key, _ in pairs):
        return Values("colors", colors=tuple((_color(key) or (0, 0, 0), target) for key, target in pairs))
    return Values("levels", levels=tuple((*_range(key), target) for key, target in pairs))


def _class_id(key: object, target: object) -> int | None:
    if target == "ignore" or target is None:
        return None
    if isinstance(target, bool) or not re.fullmatch(r"\d+", str(target)):
        raise UserError(f"values maps {key!r} to {target!r}; give a class id (0, 1, ...) or ignore.")
    return int(str(target))


def _color(key: str) -> Color | None:
    if found := re.fullmatch(r"[\[(]?\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*[\])]?", key):
        red, green, blue = (int(part) for part in found.groups())
        return (red, green, blue) if max(red, green, blue) <= 255 else None
    if re.fullmatch(r"#[0-9a-fA-F]{6}", key):
        return int(key[1:3], 16), int(key[3:5], 16), int(key[5:7], 16)
    return None


def _range(key: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", key)
    if not found or int(found[2] or found[1]) < int(found[1]) or int(found[2] or found[1]) > 65535:
        raise UserError(
            f"values has the key {key!r}; give a number (0), a range (128-255) or, for all of them, colours (#ff0000)."
        )
    return int(found[1]), int(found[2] or found[1])
