"""Recipes: a task, a model and data in one YAML file, and what the command line sets over it. Imports no torch.

A file is read, names of parts become `{name: ...}`, the command line is laid over it, unknown keys are refused, and
jsonargparse checks the types and fills in what is missing, as the dataclasses in keys.py declare it.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from zoo.errors import UserError, nearest
from zoo.training.dialect import parse
from zoo.training.keys import (
    HOMES,
    MODEL_KEYS,
    PARTS,
    SECTIONS,
    TRAINER_KEYS_OF_THE_RUN,
    Recipe,
    docs,
    is_text,
    takes,
)

UNFIT = frozenset('<>:"|?*')  # in no file's name on Windows


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a catalogue name ("segmentation/demo") or of a .yaml file, with the command line's keys over it.

    overrides: "--key value" as two strings or "--key=value" as one; values are YAML. A part's name that differs from
    the recipe's replaces the part with its options, an equal one keeps them; `--model NAME` keeps num_classes,
    in_channels and encoder_weights, which belong to the data and the backbone. Raises UserError for a recipe that
    doesn't exist, a file that isn't YAML, an unknown key (with the nearest) and a value of the wrong type.
    """
    raw = parse(recipe_text(name_or_path), f"The recipe {str(name_or_path)!r}")
    if not isinstance(raw, dict):
        raise UserError(f"The recipe {str(name_or_path)!r} holds no keys; it needs at least `model` and `data`.")
    for path in PARTS:
        _name_part(raw, path.split("."))
    raw |= {key: _spelled_out(key, value) for key, value in raw.items()}
    for key, text in sorted(_pairs(overrides), key=lambda pair: pair[0].count(".")):  # a part's name before its options
        _override(raw, key, text)
    _refuse_unknown(raw)
    own_name = str(name_or_path) if str(name_or_path) in list_recipes() else Path(name_or_path).stem
    raw["name"] = raw.get("name") or own_name
    return _build(raw)


def list_recipes() -> list[str]:
    """Names of the catalogue's recipes, "task/name", sorted."""
    return sorted(_catalogue())


def recipe_text(name_or_path: str | Path) -> str:
    """A recipe's file as it is, remarks included. Raises UserError with the nearest name where there is none."""
    catalogue, name = _catalogue(), str(name_or_path)
    if name in catalogue:
        return catalogue[name].read_text(encoding="utf-8")
    if not name.endswith((".yaml", ".yml")):
        same_end = [known for known in catalogue if known.endswith(f"/{name}")]
        near = f" - did you mean {same_end[0]!r}?" if same_end else nearest(name, catalogue)
        raise UserError(
            f"There is no recipe {name!r}{near or '.'} `zoo list recipes` shows them all; a file ends in .yaml."
        )
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"The recipe {name!r} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"The recipe {name!r} is not a text file in UTF-8.") from None


def recipe_keys(recipe: Recipe) -> list[tuple[str, str, str]]:
    """(dotted key, its value in this recipe as the command line takes it, what it does) for every key."""
    rows: list[tuple[str, str, str]] = []
    for key, doc in docs(Recipe).items():
        value = getattr(recipe, key)
        if key == "model":
            given = {inner: json.dumps(value[inner]) if inner in value else "(not set)" for inner in MODEL_KEYS}
            rows += [(f"model.{inner}", given[inner], text) for inner, text in MODEL_KEYS.items()]
        elif key in SECTIONS and key != "trainer":
            found = docs(type(value)).items()
            rows += [(f"{key}.{inner}", json.dumps(getattr(value, inner)), text) for inner, text in found]
        else:
            rows.append((key, json.dumps(value), doc))
    return rows


def _catalogue() -> dict[str, Traversable]:
    tasks = [folder for folder in files("zoo.recipes").iterdir() if folder.is_dir()]
    found = [(task, file) for task in tasks for file in task.iterdir() if file.name.endswith(".yaml")]
    return {f"{task.name}/{file.name.removesuffix('.yaml')}": file for task, file in found}


def _pairs(overrides: Iterable[str]) -> list[tuple[str, str]]:
    """("data.root", "photos/") from "--data.root photos/" and "--data.root=photos/"."""
    words, pairs = list(overrides), []
    while words:
        word = words.pop(0)
        if not re.fullmatch(r"--[^=]+(=.*)?", word, re.DOTALL):
            raise UserError(f"{word!r} is no recipe key; keys are set as --key value, for example --data.root photos/.")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise UserError(
                    f"The recipe key --{key} lacks a value; give it as --{key} value (true, false or null too)."
                )
            text = words.pop(0)
        pairs.append((key.removesuffix(".name") if key.removesuffix(".name") in PARTS else key, text))
    return pairs


def _name_part(raw: dict[str, Any], path: list[str]) -> None:
    *above, last = path
    for key in above:
        raw = raw[key] if isinstance(raw.get(key), dict) else {}
    if isinstance(raw.get(last), str):
        raw[last] = {"name": raw[last]}


def _override(raw: dict[str, Any], key: str, text: str) -> None:
    """Set one dotted key; `raw` is changed."""
    _refuse_unknown(_nested(key))
    *above, last = key.split(".")
    for i, step in enumerate(above):
        inner = raw.setdefault(step, {})
        if inner is None:
            inner = raw[step] = {}
        if not isinstance(inner, dict):
            raise UserError(
                f"The recipe key {'.'.join(above[: i + 1])!r} is {inner!r} and holds no keys; {key!r} cannot be set."
            )
        raw = inner
    value: Any = text
    if text in ("null", "~", ""):
        value = None
    elif not is_text(key):
        value = parse(text, f"The value of --{key}, {text!r},")
    if key in PARTS and isinstance(value, str | dict):
        value = {"name": value} if isinstance(value, str) else value
        old: dict[str, Any] = raw[last] if isinstance(raw.get(last), dict) else {}
        if value.get("name") == old.get("name"):
            value = {**old, **value}
        elif key == "model":
            kept = ("num_classes", "in_channels", "encoder_weights")
            value = {**{k: old[k] for k in kept if k in old}, **value}
    if isinstance(value, dict):
        for path in PARTS:
            if path.startswith(f"{key}."):
                _name_part(value, path.removeprefix(f"{key}.").split("."))
    raw[last] = _spelled_out(key, value)


def _spelled_out(key: str, value: Any) -> Any:
    """`early_stopping: 10` as {patience: 10}; anything else as it is."""
    number = key == "early_stopping" and isinstance(value, int | float)
    return {"patience": value} if number else value


def _nested(key: str) -> dict[str, Any]:
    first, *rest = key.split(".")
    return {first: _nested(".".join(rest)) if rest else None}


def _refuse_unknown(raw: Mapping[str, Any]) -> None:
    names = [f.name for f in fields(Recipe)]
    every = names + [f"{section}.{inner}" for section, keys in SECTIONS.items() for inner in keys]
    for key, value in raw.items():
        found = [str(key)] if key not in names else []
        if key in SECTIONS and value is not None:
            if not isinstance(value, dict):
                raise UserError(
                    f"The recipe key {key!r} holds keys of its own, not {value!r}: {', '.join(SECTIONS[key])}."
                )
            found += [f"{key}.{inner}" for inner in value if inner not in SECTIONS[key]]
        for wrong in found:
            same_end = [name for name in every if name.rpartition(".")[2] == wrong.rpartition(".")[2]]
            near = f" - did you mean {' or '.join(map(repr, same_end))}?" if same_end else nearest(wrong, every)
            hint = " The run sets it itself." if wrong.removeprefix("trainer.") in TRAINER_KEYS_OF_THE_RUN else ""
            raise UserError(
                f"There is no recipe key {wrong!r}{near or '.'}{hint} `zoo train RECIPE --help` lists the keys."
            )


def _build(raw: dict[str, Any]) -> Recipe:
    """Types checked and defaults filled in."""
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(Recipe, None)
    given = {key: value for key, value in raw.items() if value is not None or key in ("loss", "monitor", "save_every")}
    try:
        resolved = _plain(parser.parse_object(given).as_dict())
    except (ArgumentError, TypeError) as error:
        raise UserError(_why(str(error), given)) from None
    if resolved["seed"] >= 2**32:  # NumPy takes no larger one
        raise UserError(f"The recipe key 'seed' is {resolved['seed']}; it takes a whole number from 0 to {2**32 - 1}.")
    name = Path(resolved["name"])
    if name.is_absolute() or ".." in name.parts or UNFIT & set(resolved["name"]):
        raise UserError(
            f"The recipe key 'name' is {resolved['name']!r}; it names a folder below runs/, without `..` and without"
            f" {' '.join(sorted(UNFIT))}, which not every system takes."
        )
    return Recipe(**{**resolved, **{key: home(**resolved[key]) for key, home in HOMES.items()}})


def _plain(value: Any) -> Any:
    """Python's own numbers in place of jsonargparse's restricted ones, which no checkpoint should meet."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    number = next((kind for kind in (bool, int, float) if isinstance(value, kind)), None)
    return number(value) if number else value


def _why(message: str, raw: dict[str, Any]) -> str:
    """jsonargparse's complaint as a sentence with the key, its value, what it takes and what it does."""
    missing = re.search(r"arguments are required: (.+)", message)
    if missing:
        return f"The recipe lacks the key {missing[1]!r}; every recipe needs a `model` and a `data.card`."
    found = re.search(r'key "([^"]+)"', message)
    if not found:
        return f"The recipe does not fit: {message.splitlines()[0]}."
    section, _, inner = found[1].rpartition(".")
    home = HOMES.get(section, Recipe)
    value = raw.get(section, {}).get(inner) if section else raw.get(inner)
    given = json.dumps(value, default=str)
    return f"The recipe key {found[1]!r} is {given}; it takes {takes(home, inner)} ({docs(home)[inner]})."
