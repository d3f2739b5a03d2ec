"""Exported programs on disk: what they say of themselves, and how they are run. Nothing here builds a model."""

import importlib
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.files import PROGRAMS, is_program

FACTS = "visionzoo"  # the key of an ONNX file's metadata_props; of a .pt2 the extra file FACTS.json
Run = Callable[[Mapping[str, Tensor], Sequence[str]], dict[str, Tensor]]


@dataclass(frozen=True)
class Exported:
    """A program that was opened. run(inputs, names): the named outputs; tensors come and go on `device`.

    facts: the model's config, the names of inputs and outputs, the fixed size or None, versions, and the figures of
    the check that it passed when it was written.
    """

    facts: dict[str, Any]
    run: Run
    device: torch.device


def open_program(path: str | Path, device: str | None = None) -> Exported:
    """The program in a .onnx file (by ONNX Runtime) or a .pt2 file (by torch).

    device: where to compute, by default a CUDA GPU where the runtime has one. Raises UserError where there is no file,
    where it is damaged or not of visionzoo, and where the runtime or the device is missing.
    """
    path = Path(path)
    if not is_program(path):
        raise UserError(f"{str(path)!r} is no exported program; they end in {' or '.join(PROGRAMS)}.")
    if not path.is_file():
        raise UserError(f"There is no exported program {str(path)!r}; `zoo export RUN -o {path}` writes one.")
    return _open_onnx(path, device) if path.suffix.lower() == ".onnx" else _open_pt2(path, device)


def needed(*names: str) -> list[Any]:
    """Modules that ONNX files take. Raises UserError with the command that installs them."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise UserError(
            f"ONNX files take the package {error.name!r}, which is not installed; pip install 'visionzoo[onnx]'."
        ) from None


def _open_onnx(path: Path, device: str | None) -> Exported:
    (ort,) = needed("onnxruntime")
    gpu = "CUDAExecutionProvider" in ort.get_available_providers()
    place = str(device or ("cuda" if gpu else "cpu"))
    kind, _, index = place.partition(":")
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not gpu):
        raise UserError(
            f"ONNX Runtime {ort.__version__} finds no device {place!r} here; use cpu"
            + (", or install onnxruntime-gpu." if kind == "cuda" else " or cuda, or predict with the checkpoint.")
        )
    providers: list[Any] = [("CUDAExecutionProvider", {"device_id": index or "0"})] if kind == "cuda" else []
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors alone: it warns of every initializer that it folds
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = ort.InferenceSession(str(path), options, [*providers, "CPUExecutionProvider"])
    except Exception as error:  # its own exceptions have no common base
        raise _damaged(path, error) from None
    facts = _facts(session.get_modelmeta().custom_metadata_map.get(FACTS, ""), path)

    def run(inputs: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in inputs.items()}
        outputs = session.run(list(names), arrays)
        return {name: torch.from_numpy(array) for name, array in zip(names, outputs, strict=True)}

    return Exported(facts, run, torch.device("cpu"))


def _open_pt2(path: Path, device: str | None) -> Exported:
    extra = {f"{FACTS}.json": ""}
    try:
        with quiet():
            program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # zip files, JSON, schemas: whatever it stumbles over first
        raise _damaged(path, error) from None
    facts = _facts(extra[f"{FACTS}.json"], path)
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"torch {torch.__version__} finds no device {device!r} here; use cpu.") from None
    if target.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, target)
    module = program.module()

    def run(inputs: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        outputs = module(**inputs)
        return {name: outputs[name] for name in names}

    return Exported(facts, run, target)


def _facts(text: str | bytes, path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or "config" not in facts:
        raise UserError(f"{str(path)!r} was not written by visionzoo; `zoo export RUN -o FILE` writes what it can run.")
    return facts


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{str(path)!r} cannot be read as a program, it may be damaged ({told(error)}); export it again.")


def told(error: BaseException) -> str:
    """The first line of what a library says at bottom, not too long, without a terminal's colours."""
    while error.__cause__ is not None:  # exporters wrap what happened several times
        error = error.__cause__
    line = (str(error) or type(error).__name__).strip().split("\n")[0]
    return re.sub(r"\x1b\[[0-9;]*m", "", line)[:200]


@contextmanager
def quiet() -> Iterator[None]:
    """torch's exporters tell of each step, and log what they raise as well; here they don't."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [(logger.disabled, logger.level) for logger in loggers]
    for logger in loggers:
        logger.disabled = True
        logger.setLevel(logging.CRITICAL + 1)  # theirs below it inherit the level, not that it is disabled
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, (was, level) in zip(loggers, before, strict=True):
            logger.disabled = was
            logger.setLevel(level)
