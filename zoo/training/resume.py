"""`zoo train --resume`: a run that was killed or interrupted goes on where it stopped, as if it never had."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import UserError
from zoo.report.page import read_json
from zoo.training.recipe import load_recipe
from zoo.training.record import SPLITS
from zoo.training.run import carry_out
from zoo.training.state import Past, find_state
from zoo.training.surroundings import create_console

HARMLESS = (
    "data.num_workers",
    "data.root",
    "data.timeout",
    "data.max_errors",
    "data.on_error",
    "on_nan",
    "save_every",
    "trainer.logger",
    "trainer.log_every_n_steps",
    "trainer.profiler",
)
"""Keys, with those below them, that change nothing of what is trained; data.root where the same files lie elsewhere.

data.on_error, data.max_errors and on_nan are the way out that a training's errors name.
"""

ANOTHER = ("name", "optimizer.name", "overfit", "data.fold", "data.folds", "data.card.splits", "data.card.group")
"""Keys with which a run would be another one: its optimiser does not fit, or its splits are those it has kept."""


def resume(run: str | Path, overrides: Iterable[str] = (), *, anyway: bool = False) -> Path:
    """Go on with a run from its newest whole state, to the end of its recipe; returns its folder.

    overrides: recipe keys as on the command line. Those that change what is trained are refused, unless `anyway`; then
    the run goes on with the change, which its report tells. A finished run is left as it is, unless a key is changed.
    Raises UserError for a run without a state.
    """
    folder = Path(run)
    own, recipe = (load_recipe(folder / "recipe.yaml", words) for words in ((), list(overrides)))
    facts = read_json(folder / "run.json")
    changes = difference(asdict(own), asdict(recipe))
    changed = {key: pair for key, pair in changes.items() if not _is_of(key, HARMLESS)}
    told = ", ".join(f"{key} {_text(new)} (before: {_text(old)})" for key, (old, new) in changed.items())
    if changed and not anyway:
        raise UserError(
            f"{folder} was trained otherwise: {told}. Leave that out, or give --resume_anyway to go on with the"
            " change; the run is then no longer what its recipe says from its first step on."
        )
    if another := [key for key in changed if _is_of(key, ANOTHER)]:
        key = another[0]
        raise UserError(f"{told}: a run cannot go on with another {key}; start a new one (--model.weights {folder}).")
    if facts.get("finished") and not changed:
        create_console().print(
            f"{folder} is finished. {facts['told'][-1]} To prolong it: {facts['commands']['prolong it']}"
        )
        return folder
    state = find_state(folder)
    if state is None:
        raise UserError(
            f"{folder} holds no state to go on from (the first is written after its first epoch, or after save_every"
            f" steps); start again: zoo train {folder / 'recipe.yaml'}"
        )
    if not (folder / SPLITS).is_file():
        raise UserError(
            f"{folder / SPLITS} is gone, which says what images were in which split; put it back, or start a new"
            f" run: zoo train {folder / 'recipe.yaml'}"
        )
    sentence = f"Resumed after step {state.stem}{' with ' * bool(told)}{told}."
    return carry_out(recipe, folder.parent, Past(folder, state, [*facts.get("resumed", []), sentence], bool(changed)))


def difference(before: Mapping[str, Any], after: Mapping[str, Any], above: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value before, value after) of every key that differs; None also where there is no such key."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found |= difference(old, new, f"{above}{key}.")
        elif old != new:
            found[f"{above}{key}"] = (old, new)
    return found


def _is_of(key: str, keys: Iterable[str]) -> bool:
    """Whether a dotted key is one of these or below one."""
    return any(f"{key}.".startswith(f"{known}.") for known in keys)


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).split("\n...")[0].strip()
