"""Test-time augmentation: a net run on the image's flips and turns, its raw outputs turned back and averaged.

Raw outputs (logits) are averaged, not probabilities, as nnU-Net does (Isensee et al. 2021): the answer is then the
task's own function of one map, with its own threshold.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError, nearest

Turn = tuple[int, bool]  # quarter turns, then whether it is mirrored left to right
TURNS: dict[str, tuple[Turn, ...]] = {
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, True), (2, False)),  # as it is, left to right, top to bottom, both
    "d4": tuple((quarters, mirrored) for quarters in range(4) for mirrored in (False, True)),  # all 8 of a square
}


def check_tta(tta: str, given: Sequence[str]) -> None:
    """Raise UserError for an unknown name, and for prompts, whose places nobody here can flip."""
    if tta not in TURNS:
        raise UserError(f"There is no tta {tta!r}{nearest(tta, TURNS) or '.'} Choose one of {', '.join(TURNS)}.")
    if tta != "none" and given:
        raise UserError(f"tta={tta!r} flips the image, and `{given[0]}` can't be flipped with it; leave tta out.")


def augmented(
    run: Callable[..., dict[str, Any]], maps: Sequence[str], tta: str, *, alone: bool
) -> Callable[..., dict[str, Any]]:
    """`run` averaged over the turns of `tta`: (image, **planes), each (B, n, H, W) -> the maps, float32.

    alone: the maps are all that the answer needs; where it may need more, outputs beside them raise UserError.
    """
    if tta == "none":
        return run

    def averaged(image: Tensor, **planes: Tensor) -> dict[str, Any]:
        total: dict[str, Tensor] = {}
        for turn in TURNS[tta]:
            outputs = run(turned(image, turn), **{name: turned(x, turn) for name, x in planes.items()})
            if not alone and (beside := sorted({*outputs} - {*maps})):
                raise UserError(f"tta={tta!r} averages maps, and the answer also needs `{beside[0]}`; leave tta out.")
            for name in maps:
                x = turned_back(outputs[name], turn).to(torch.promote_types(outputs[name].dtype, torch.float32))
                total[name] = total[name] + x if name in total else x
        return {name: x / len(TURNS[tta]) for name, x in total.items()}

    return averaged


def turned(x: Tensor, turn: Turn) -> Tensor:
    """x (..., H, W) turned, then mirrored; (..., W, H) for odd quarters."""
    quarters, mirrored = turn
    x = torch.rot90(x, quarters, (-2, -1)) if quarters else x
    return x.flip(-1) if mirrored else x


def turned_back(x: Tensor, turn: Turn) -> Tensor:
    """What `turned` made, as it was."""
    quarters, mirrored = turn
    x = x.flip(-1) if mirrored else x
    return torch.rot90(x, -quarters, (-2, -1)) if quarters else x
