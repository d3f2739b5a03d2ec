"""Files of weights: names and their tensors, read without running anything that is in the file."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zoo.errors import UserError

WRAPPERS = ("state_dict", "model", "model_state_dict")  # what training codes put a state_dict under
BEGINS = (b"PK", b"\x80", b"\x1f\x8b")  # of torch's files: zip, pickle; the oldest are tars


def read_state(file: str | Path) -> dict[str, Tensor]:
    """The tensors of one file, on the CPU: .safetensors, or a state_dict that torch saved (weights_only=True).

    A state_dict may lie under one of `WRAPPERS`; the prefix "module." of DataParallel is taken off. Raises UserError
    for what is missing, damaged, no file of weights, or holds more than tensors.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"There is no file of weights at {str(file)!r}.")
    try:
        if file.suffix == ".safetensors":
            state: Any = load_file(file)
        else:
            with file.open("rb") as opened:
                if not opened.read(2).startswith(BEGINS):
                    raise UserError(f"{str(file)!r} is no file of weights; it may be a web page saved in its place.")
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, KeyError) as error:
        raise UserError(f"{str(file)!r} cannot be read as weights, it may be truncated: {_first_line(error)}") from None
    except UserError:
        raise
    except Exception as error:  # torch raises pickle.UnpicklingError for what weights_only refuses
        raise UserError(
            f"{str(file)!r} holds more than tensors, and code from a file is never run: {_first_line(error)}"
        ) from None
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{str(file)!r} holds no state_dict (names and their tensors).")
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().split("\n")[0].split(". ")[0] + "."
