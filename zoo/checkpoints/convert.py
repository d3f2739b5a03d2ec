"""Published weights in our names: key rules, concatenations, and one error that lists all that does not fit."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from zoo.errors import UserError


def convert(
    rules: Sequence[tuple[str, str]],
    state: Mapping[str, Tensor],
    expected: Mapping[str, Sequence[int]],
    *,
    what: str = "These weights",
) -> dict[str, Tensor]:
    """A published state_dict as the state_dict of our model; tensors keep their dtype and device.

    rules: (pattern, replacement) pairs, see `zoo.register_model`. expected: the shape of every key that our model has.
    what: the subject of the error's sentence.
    Raises UserError that lists unknown keys (no rule, or a rule to a key that our model does not have), missing keys
    and misshapen keys.
    """
    unknown: list[str] = []
    doubled: list[str] = []
    pieces: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        target = rename(rules, key)
        if target == "":
            continue
        name, _, piece = (target or "").partition("#")
        if name not in expected:
            unknown.append(key)
        elif int(piece or 0) in pieces.setdefault(name, {}):
            doubled.append(f"{key} as {target}")
        else:
            pieces[name][int(piece or 0)] = value

    converted = {name: join(pieces[name]) for name in expected if name in pieces}
    missing = [name for name in expected if name not in pieces]
    misshapen = [
        f"{name} {shapes(pieces[name])} instead of {tuple(expected[name])}"
        for name, value in converted.items()
        if value is None or value.shape != tuple(expected[name])
    ]
    faults = {"unknown": unknown, "missing": missing, "misshapen": misshapen, "given twice": doubled}
    if any(faults.values()):
        told = "; ".join(f"{len(keys)} {fault}: {some(keys)}" for fault, keys in faults.items() if keys)
        raise UserError(f"{what} do not fit the model ({told}); give the weights of this very model.")
    return {name: value for name, value in converted.items() if value is not None}


def rename(rules: Sequence[tuple[str, str]], key: str) -> str | None:
    """Our name for a published key by the first rule that matches it whole: "" drops the key, None is no rule."""
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return None


def join(pieces: dict[int, Tensor]) -> Tensor | None:
    """Pieces 0, 1, .. concatenated along dimension 0; None where a number is left out or the pieces do not fit."""
    if list(pieces) == [0]:
        return pieces[0]
    ordered = [pieces[i] for i in sorted(pieces)]
    same_tails = len({piece.shape[1:] for piece in ordered}) == 1 and all(piece.ndim for piece in ordered)
    return torch.cat(ordered) if same_tails and sorted(pieces) == list(range(len(pieces))) else None


def shapes(pieces: dict[int, Tensor]) -> str:
    """The shapes of pieces for an error: "(3, 4)", or "#0 (3, 4) + #2 (3, 4)"."""
    if list(pieces) == [0]:
        return str(tuple(pieces[0].shape))
    return " + ".join(f"#{i} {tuple(pieces[i].shape)}" for i in sorted(pieces))


def some(keys: list[str], most: int = 5) -> str:
    """The first keys of a list, and how many more there are."""
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
