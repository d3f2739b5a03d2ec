"""Names for parts: encoders, decoders, tasks and models, built in or registered from outside.

A part registers itself where it is defined; `find` answers with its entry or with the nearest right name.
Packages can add parts through the entry point group `zoo.plugins`: each entry point names a module (imported)
or a function (called) that registers what it brings.
"""

import fnmatch
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar, overload

from zoo.errors import UserError, nearest

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """What is known of one registered part without building it.

    tasks: names of the tasks it serves; empty = all. keys: rules that turn the official state_dict's keys into ours,
    for a published model (see `zoo.convert_weights`). weights: (official file, where its authors keep it).
    """

    name: str
    build: Callable[..., Any]
    tasks: tuple[str, ...] = ()
    paper: str = ""
    licence: str = ""
    weights_licence: str = ""
    keys: tuple[tuple[str, str], ...] = ()
    weights: tuple[tuple[str, str], ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the part's docstring."""
        return (self.build.__doc__ or "").strip().split("\n")[0]


class Registry:
    """One kind of part by name."""

    def __init__(self, kind: str):
        self.kind = kind
        self.entries: dict[str, Entry] = {}
        self.rivals: list[Registry] = []  # whose names may not be given here either

    def add(self, build: Callable[..., Any], *, name: str | None = None, **facts: Any) -> None:
        """Register `build` under `name`; by default the snake_case of its own name. A name that is taken is refused.

        The same definition may come again, as a notebook's cell does.
        """
        name = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", build.__name__).lower()
        rivals = [r for r in (self, *self.rivals) if name in r.entries]
        if rivals and _home(old := rivals[0].entries[name].build) != _home(build):
            raise UserError(
                f"The {rivals[0].kind} {name!r} is registered already, by {'.'.join(_home(old))}; choose another name."
            )
        self.entries[name] = Entry(name=name, build=build, **facts)

    def find(self, name: str) -> Entry:
        """The entry of that name. Raises UserError with the nearest names where there is none."""
        load_plugins()
        if name not in self.entries:
            listed = (
                f"It is one of {', '.join(self.names())}." if self is TASKS else f"`zoo list {self.kind}s` shows all."
            )
            near = nearest(name, self.entries) or ". One of your own has to be registered first."
            raise UserError(f"There is no {self.kind} {name!r}{near} {listed}")
        return self.entries[name]

    def names(self, task: str | None = None) -> list[str]:
        """All names, sorted; those that serve `task` where one is given (an unknown one is a UserError)."""
        load_plugins()
        if task is not None:
            TASKS.find(task)
        return sorted(n for n, e in self.entries.items() if task is None or not e.tasks or task in e.tasks)


ENCODERS = Registry("encoder")
DECODERS = Registry("decoder")
TASKS = Registry("task")
MODELS = Registry("model")
MODELS.rivals, DECODERS.rivals = [DECODERS], [MODELS]  # a decoder's name alone is a model too


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that hold `pattern`, or, where it has * ? or [, that match it whole; in their order."""
    return fnmatch.filter(names, pattern if any(c in pattern for c in "*?[") else f"*{pattern}*")


def _home(build: Callable[..., Any]) -> tuple[str, str]:
    return build.__module__, build.__qualname__


@cache
def load_plugins() -> None:
    """Import what installed packages offer in the group `zoo.plugins`, once."""
    for point in entry_points(group="zoo.plugins"):
        try:
            plugin = point.load()
            if callable(plugin):
                plugin()
        except Exception as error:  # somebody else's code: the zoo goes on without it
            warnings.warn(f"The plugin {point.name!r} does not load: {type(error).__name__}: {error}", stacklevel=2)


def _register(registry: Registry, build: T | None, facts: dict[str, Any]) -> Any:
    def add(part: T) -> T:
        registry.add(part, **facts)
        return part

    return add if build is None else add(build)


@overload
def register_encoder(build: T) -> T: ...
@overload
def register_encoder(*, name: str | None = None, paper: str = "", licence: str = "") -> Callable[[T], T]: ...
def register_encoder(build: T | None = None, **facts: Any) -> Any:
    """Register an encoder: `build(in_channels, strides, **options)`, whose forward(image) gives a list of features.

    It has the attributes `channels` and `strides`, and `mean` and `std` to normalise with. The option `frozen` is
    every encoder's already (see `zoo.encoders.frozen`). Used bare or with facts:
    `@register_encoder` or `@register_encoder(name="mine", paper="arXiv ...")`.
    """
    return _register(ENCODERS, build, facts)


@overload
def register_decoder(build: T) -> T: ...
@overload
def register_decoder(
    *,
    name: str | None = None,
    tasks: tuple[str, ...] = (),
    paper: str = "",
    licence: str = "",
    weights_licence: str = "",
    keys: tuple[tuple[str, str], ...] = (),
) -> Callable[[T], T]: ...
def register_decoder(build: T | None = None, **facts: Any) -> Any:
    """Register a decoder: a class `Decoder(channels, num_outputs, **options)` with `strides`; tasks: which it serves.

    keys: as in `register_model`, for a decoder whose name alone is a model and that has published weights as one.
    """
    return _register(DECODERS, build, facts)


@overload
def register_task(build: T) -> T: ...
@overload
def register_task(*, name: str | None = None) -> Callable[[T], T]: ...
def register_task(build: T | None = None, **facts: Any) -> Any:
    """Register a task: a class `Task(num_classes, **options)` with `loss` and `answer`."""
    return _register(TASKS, build, facts)


def register_model(
    *,
    task: str,
    name: str | None = None,
    paper: str = "",
    licence: str = "",
    weights_licence: str = "",
    keys: tuple[tuple[str, str], ...] = (),
    weights: tuple[tuple[str, str], ...] = (),
) -> Callable[[T], T]:
    """Register a named model: a function without arguments that returns the keys of `zoo.create_model`.

    keys: (pattern, replacement) for `zoo.convert_weights`, tried in order with `re.fullmatch`. A replacement that ends
    in "#i" is piece i of a concatenation along dimension 0; an empty one drops the key; no match is an error.
    """
    facts = dict(
        name=name, tasks=(task,), paper=paper, licence=licence, weights_licence=weights_licence, keys=keys,
        weights=weights,
    )  # fmt: skip
    register: Callable[[T], T] = _register(MODELS, None, facts)
    return register
