"""A checkpoint is a folder with `model.safetensors` and `config.json`; no pickle, no class path, no network.

Files of weights from elsewhere (.pth, .pt, .bin) are read with torch's `weights_only=True`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.errors import UserError

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write(folder: str | Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Path:
    """Write both files into `folder` (made where missing), each aside first and then renamed; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    aside = {name: folder / f".{name}.{os.getpid()}" for name in (WEIGHTS, CONFIG)}
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, aside[WEIGHTS])
        aside[CONFIG].write_text(json.dumps(config, indent=2) + "\n")
        os.chmod(aside[WEIGHTS], aside[CONFIG].stat().st_mode)  # safetensors lets nobody else read
        for name in (CONFIG, WEIGHTS):  # the weights last: a folder without them is no checkpoint
            os.replace(aside[name], folder / name)
    finally:
        for path in aside.values():
            path.unlink(missing_ok=True)
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
        config = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise UserError(f"{str(folder / CONFIG)!r} is not JSON ({error}); the checkpoint is damaged.") from None
    if not isinstance(config, dict):
        raise UserError(f"{str(folder / CONFIG)!r} is not a model's config; the checkpoint is damaged.")
    return config, read_state(folder / WEIGHTS)


def read_state(file: str | Path) -> dict[str, Tensor]:
    """The tensors of one file of weights, on the CPU: .safetensors, or a state_dict saved by torch.

    A state_dict may lie under "state_dict" or "model"; prefixes are left as they are.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"There is no file of weights at {str(file)!r}.")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{str(file)!r} cannot be read as weights: {_first_line(error)}") from None
    except Exception as error:  # torch raises pickle.UnpicklingError for what weights_only refuses
        raise UserError(
            f"{str(file)!r} holds more than tensors, and code from a file is never run: {_first_line(error)}"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{str(file)!r} holds no state_dict (names and their tensors).")
    return state


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().split("\n")[0].split(". ")[0] + "."
