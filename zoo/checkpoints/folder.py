"""A checkpoint is a folder with `model.safetensors` and `config.json`; no pickle, no class path, no network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from zoo.errors import UserError
from zoo.files import aside
from zoo.weights import read_state

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write(folder: str | Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Path:
    """Write both files into `folder` (made where missing), each aside first and then renamed; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # the weights are renamed last: a folder without them is no checkpoint
    with aside(folder / WEIGHTS) as weights, aside(folder / CONFIG) as text:
        # cloned: safetensors refuses tensors that share memory, as tied weights do
        save_file({key: value.detach().cpu().clone().contiguous() for key, value in state.items()}, weights)
        text.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights.chmod(text.stat().st_mode)  # safetensors lets nobody else read
    return folder


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the weights of a checkpoint folder (a run is one). Raises UserError where it isn't one."""
    folder = Path(folder)
    if not folder.exists():
        raise UserError(
            f"There is no checkpoint at {str(folder)!r}; give a run or a folder with {WEIGHTS} and {CONFIG}."
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{str(folder)!r} holds no {name}; a checkpoint is a folder with {WEIGHTS} and {CONFIG}"
                " (a run has them once its first epoch has ended)."
            )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{str(folder / CONFIG)!r} is not JSON ({error}); the checkpoint is damaged.") from None
    if not isinstance(config, dict):
        raise UserError(f"{str(folder / CONFIG)!r} is not a model's config; the checkpoint is damaged.")
    return config, read_state(folder / WEIGHTS)
