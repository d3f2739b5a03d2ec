"""Data cards: one YAML file says where a data set's files are, what its masks mean and how it splits.

Cards of the package are data/*.yaml; a path to a .yaml of one's own works in every place where a name does.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from zoo.datasets.values import Color, parse_values
from zoo.errors import UserError, nearest

SPLITS = {"seed": 0, "val": 0.1, "test": 0.1}


@dataclass(frozen=True)
class Card:
    """A data set in words and patterns; paths are relative to `root`.

    Patterns hold {name} (any text, subfolders too; equal for an image and its mask), {split} (what `splits` gives) and
    * (any text within one folder); where several are given, the first that finds files counts.
    """

    name: str
    title: str = ""
    task: str = "segmentation"
    home: str = ""
    licence: str = ""
    get: str = ""
    """how to get the files, in words"""
    root: str | None = None
    """the folder with the files; in a .yaml of one's own relative to it"""
    images: tuple[str, ...] = ("images/{name}.*",)
    masks: tuple[str, ...] = ("masks/{name}.*",)
    mask_endings: tuple[str, ...] = ("",)
    """what may follow {name} in the names of masks: each pattern of masks stands for one with each of these"""
    splits: dict[str, Any] = field(default_factory=lambda: dict(SPLITS))
    """split -> folder put for {split}, or a .txt with one name a line, or a share of train drawn by `seed`; a list of
    these: the first that exists, and that has masks. Without `train`, all images that no other split names are train.
    Overrides are laid over the card's or layout's own; null takes a split out"""
    layouts: tuple[dict[str, Any], ...] = ()
    """other arrangements of images, masks and splits: the first whose training images exist is taken"""
    exclude: tuple[str, ...] = ()
    """names of pairs that are left out, as {name}, or {split}/{name} where splits are folders"""
    group: str | None = None
    """regular expression on the name: images with equal match (its groups, else all of it) stay in one split"""
    values: dict[Any, Any] | str | None = None
    """file value -> class id or ignore (see `values.py`), applied before ignore_index; null = ids already"""
    ignore_index: int = 255
    num_classes: int | None = None
    """1 = binary; default: the number of `classes`, else found by looking"""
    classes: tuple[str, ...] = ()
    """names by class id; in binary, the foreground's alone"""
    colors: tuple[Color, ...] = ()
    channels: int = 3
    """channels of the image as the model gets it; grey files are repeated, colour is turned into grey for 1"""
    intensity: dict[str, Any] = field(default_factory=dict)
    """how file values become pixels (see `intensity.py`)"""
    prepare: str | None = None
    """name of the function that makes or downloads the files where they are missing (see `prepare.py`)"""
    found: str = ""
    """what looking at the files showed, in sentences; not a key of the YAML"""


KEYS = tuple(f.name for f in fields(Card) if f.name not in ("name", "found"))
LAYOUT_KEYS = ("images", "masks", "splits")
NULLABLE = ("values", "group", "ignore_index")  # null is a value of these (or wrong), elsewhere it means the default
KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(("title", "task", "home", "licence", "get", "prepare"), (str, "a text")),
    "root": ((str, Path), "a folder"),
    "group": ((str, type(None)), "a regular expression or null"),
    "splits": (Mapping, "a mapping such as {seed: 0, val: 0.1, test: 0.1}"),
    "layouts": ((list, tuple), "a list of mappings with images, masks and splits"),
    "colors": ((list, tuple), "a list of [red, green, blue]"),
    "intensity": (Mapping, "a mapping such as {bits: 12}"),
    "channels": (int, "the number of channels, such as 1 for grey or 3 for colour"),
    "ignore_index": (int, "an integer, such as 255 (or -1 where nothing is ignored)"),
}


def load_card(spec: str | Mapping[str, Any], root: str | Path | None = None) -> Card:
    """The card of a name, of a path to a .yaml, or of {name: ..., key: override}; `root` overrides the card's own.

    Raises UserError for a name, file, key or value that is wrong, with the nearest right one.
    """
    overrides: dict[str, Any] = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = overrides.pop("name", None)
    if not isinstance(name, str) or not name:
        raise UserError(f"The data card {spec!r} has no name; give a name (`zoo list data`) or a path to a .yaml.")
    content, home = _read(name)
    where = f"data card {name!r}"
    overrides = {key: value for key, value in overrides.items() if value is not None or key in NULLABLE}
    content = {key: value for key, value in content.items() if value is not None or key in NULLABLE}
    for keys in (overrides, content):
        _check_keys(keys, where)
        _check_kinds(keys, where)
    # who says where the files are, means it: the card's other arrangements are out
    if {"images", "masks"} & set(overrides):
        content.pop("layouts", None)
    if "masks" in overrides:
        content.pop("mask_endings", None)
    merged = content | overrides
    if "splits" in overrides:
        merged["splits"] = _over(content.get("splits", SPLITS), overrides["splits"])
    if "splits" in overrides and "layouts" in merged:
        merged["layouts"] = [
            layout | {"splits": _over(layout.get("splits", content.get("splits", SPLITS)), overrides["splits"])}
            for layout in _fitting(merged["layouts"], overrides["splits"])
        ]
    card = _card(Path(name).stem if home else name, merged)
    if root is not None:
        return replace(card, root=str(Path(root).expanduser()))
    if home and card.root and "root" not in overrides:
        return replace(card, root=str(home / Path(card.root).expanduser()))
    return card


def card_text(card: Card, file: Path) -> str:
    """The YAML of a resolved card that is to be written as `file`: what differs from the defaults, a key a line."""
    root = Path(card.root or ".").resolve()
    home = file.resolve().parent
    content: dict[str, Any] = {"title": card.title}
    content["root"] = root.relative_to(home).as_posix() if root.is_relative_to(home) else str(root)
    for one in fields(Card):
        value = getattr(card, one.name)
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if one.name in KEYS and one.name not in content and value != default and value != {}:
            content[one.name] = list(value) if isinstance(value, tuple) else value
    content["colors"] = [list(color) for color in card.colors]
    return f"# zoo train segmentation/unet_folder --data.card {file}\n" + yaml_lines(content)


def yaml_lines(content: Mapping[str, Any]) -> str:
    """Keys of a card as YAML, each on a line of its own as far as it fits; what is empty is left out."""
    lines = ""
    for key, value in content.items():
        if isinstance(value, list | dict) and value:
            text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=110, allow_unicode=True)
            lines += f"{key}: {text}"
        elif value not in ([], {}, ""):
            lines += yaml.safe_dump({key: value}, width=110, allow_unicode=True)
    return lines


def list_cards(pattern: str = "*") -> list[str]:
    """Names of the package's cards that match (fnmatch, or a part of the name), sorted."""
    names = (entry.name.removesuffix(".yaml") for entry in resources.files("zoo.cards").iterdir())
    found = sorted(name for name in names if not name.startswith("__"))
    return [name for name in found if fnmatch.fnmatch(name, pattern) or pattern in name]


def _read(name: str) -> tuple[dict[str, Any], Path | None]:
    """The YAML's content, and the folder it lies in where it is a user's own."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"There is no data card {name}.")
        try:
            text, home = path.read_text(encoding="utf-8"), path.parent
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The data card {name} can't be read ({error}); it is a text file in UTF-8.") from None
    else:
        if name not in list_cards():
            raise UserError(
                f"There is no data card {name!r}{nearest(name, list_cards()) or '.'} `zoo list data` shows them all;"
                " a path to a .yaml is a card too, and `folder` reads any folder with images/ and masks/."
            )
        text, home = (resources.files("zoo.cards") / f"{name}.yaml").read_text(encoding="utf-8"), None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"The data card {name} is no valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise UserError(f"The data card {name} holds no keys; it needs at least images and masks.")
    return content, home


def _check_keys(content: Mapping[str, Any], where: str, allowed: tuple[str, ...] = KEYS) -> None:
    for key in content:
        if key not in allowed:
            hint = nearest(key, allowed) or f"; keys are {', '.join(allowed)}."
            raise UserError(f"The {where} has the unknown key {key!r}{hint}")


def _check_kinds(content: Mapping[str, Any], where: str) -> None:
    for key, (kind, wanted) in KINDS.items():
        if key in content and (not isinstance(content[key], kind) or isinstance(content[key], bool)):
            raise UserError(f"{key} of the {where} is {content[key]!r}; give {wanted}.")
    if content.get("channels", 1) < 1:
        raise UserError(f"channels of the {where} is {content['channels']}; give {KINDS['channels'][1]}.")
    for layout in content.get("layouts", ()):
        if not isinstance(layout, Mapping):
            raise UserError(f"layouts of the {where} holds {layout!r}; give {KINDS['layouts'][1]}.")
        _check_keys(layout, f"layout of the {where}", LAYOUT_KEYS)
        _check_kinds(layout, f"layout of the {where}")


def _over(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {split: choice for split, choice in {**own, **given}.items() if choice is not None}


def _fitting(layouts: Sequence[dict[str, Any]], splits: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """The layouts that can serve the given splits: a folder needs {split} in the pattern, a list must not have it."""
    choices = [c for value in splits.values() for c in (value if isinstance(value, list | tuple) else [value])]
    wanted = {not choice.endswith(".txt") for choice in choices if isinstance(choice, str)}
    return [one for one in layouts if wanted <= {"{split}" in str(one.get("images", ""))}] or layouts


def _card(name: str, content: dict[str, Any]) -> Card:
    where = f"data card {name!r}"
    layouts = [dict(layout) for layout in content.pop("layouts", ())]
    for part in (content, *layouts):
        for key in {"images", "masks", "classes", "mask_endings", "exclude"} & part.keys():
            part[key] = _texts(part[key], f"{key} of the {where}")
        for pattern in (*part.get("images", ()), *part.get("masks", ())):
            if "{name}" not in pattern:
                raise UserError(
                    f"The {where} has the pattern {pattern!r} without {{name}}; write it like images/{{name}}.*"
                )
    content["colors"] = tuple(_rgb(color, where) for color in content.get("colors", ()))
    card = _with_endings(Card(name=name, layouts=tuple(layouts), **content))
    for one in (card.splits, *(layout.get("splits", card.splits) for layout in layouts)):
        _check_splits(one, where)
    if card.group is not None:
        try:
            re.compile(card.group)
        except re.error as error:
            raise UserError(f"group of the {where} is {card.group!r}, no regular expression: {error}.") from None
    return _counted(card, where)


def _with_endings(card: Card) -> Card:
    """The card with every pattern of masks written out for each ending."""

    def written_out(masks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(mask.replace("{name}", f"{{name}}{ending}") for mask in masks for ending in card.mask_endings)

    layouts = tuple(one | {"masks": written_out(one.get("masks", card.masks))} for one in card.layouts)
    return replace(card, masks=written_out(card.masks), layouts=layouts, mask_endings=("",))


def _counted(card: Card, where: str) -> Card:
    """The card with its number of classes, where the card itself says it; classes and values agree."""
    number = card.num_classes if card.num_classes is not None else len(card.classes) or None
    top = parse_values(card.values).top
    if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
        raise UserError(f"num_classes of the {where} is {number!r}; give 1 for binary, else the number of classes.")
    if card.classes and number != len(card.classes):
        raise UserError(f"The {where} names {len(card.classes)} classes, but num_classes is {number}; make them agree.")
    if number is None and top is not None:
        number = 1 if top <= 1 else top + 1
    if number is not None and top is not None and top >= max(number, 2):
        raise UserError(f"values of the {where} give class {top}, but there are {number} classes (ids start at 0).")
    return replace(card, num_classes=number)


def _check_splits(splits: Mapping[str, Any], where: str) -> None:
    shares = 0.0
    for name, choices in splits.items():
        for choice in choices if isinstance(choices, list | tuple) else [choices]:
            number = isinstance(choice, int | float) and not isinstance(choice, bool)
            if name == "seed":
                if not isinstance(choice, int) or isinstance(choice, bool):
                    raise UserError(f"splits.seed of the {where} is {choice!r}; give an integer.")
            elif number and (name == "train" or not 0 < choice < 1):
                raise UserError(
                    f"splits.{name} of the {where} is {choice!r}; give a share between 0 and 1 (train takes the rest)."
                )
            elif not number and not isinstance(choice, str):
                raise UserError(f"splits.{name} of the {where} is {choice!r}; give a folder, a .txt or a share.")
            elif number:
                shares += choice
    if shares >= 1:
        raise UserError(f"The shares in splits of the {where} sum to {shares:g}; leave some images for train.")


def _texts(value: object, what: str) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise UserError(f"{what[0].upper()}{what[1:]} is {value!r}; give a text or a list of texts.")
    return tuple(values)


def _rgb(color: object, where: str) -> Color:
    parts = list(color) if isinstance(color, list | tuple) else []
    if len(parts) != 3 or not all(isinstance(p, int) and 0 <= p <= 255 for p in parts):
        raise UserError(f"colors of the {where} has {color!r}; give three numbers from 0 to 255.")
    return parts[0], parts[1], parts[2]
