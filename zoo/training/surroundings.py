"""What surrounds a training: one process that speaks, libraries that keep quiet, and errors as sentences."""

import errno
import logging
import re
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from safetensors import SafetensorError

from zoo.errors import Terminated, UserError
from zoo.processes import is_first
from zoo.training.keys import Recipe


def create_console() -> Console:
    """The console of the first process; those of the others print nothing."""
    return Console(quiet=not is_first(), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's advertising, hints and warnings that are no news here are not printed; errors are."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(lightning|torchmetrics)(\.|$)")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # its sampler is
        warnings.filterwarnings("ignore", message=".*`lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C stays a KeyboardInterrupt, and SIGTERM becomes one that is Terminated.

    Lightning turns the one into exit code 1 and ignores further ones, and the other into exit code 0.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if main:
            signal.signal(signal.SIGTERM, _terminate)
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise type(error.__context__) from None
        raise
    finally:
        for number, handler in before.items() if main else ():
            signal.signal(number, handler)


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


@contextmanager
def sentences(recipe: Recipe) -> Iterator[None]:
    """Errors of workers, Lightning, the device and the disk as sentences for whoever wrote the recipe."""
    try:
        yield
    except UserError as error:
        # torch wraps a worker's error in the traceback of the worker; the last line of it is the sentence
        head, found, sentence = str(error).rpartition("zoo.errors.UserError: ")
        if found and head.startswith("Caught"):
            raise UserError(sentence.strip()) from None
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(no_memory(recipe, error)) from None
    except MisconfigurationException as error:
        raise UserError(f"The recipe's trainer keys do not fit: {one_line(error)}") from None
    except BrokenPipeError:
        raise  # nobody reads what is printed
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise UserError(no_memory(recipe, error)) from None
        last = one_line(error).rpartition("Error: ")[2]
        raise UserError(f"A file could not be written or read ({last}); make room, or see who may use it.") from error
    except ValueError as error:
        if "loaded state dict" in str(error):
            raise UserError(OTHER_STATE.format(one_line(error))) from None
        raise
    except RuntimeError as error:
        if re.search(NO_MEMORY, str(error)):
            raise UserError(no_memory(recipe, error)) from None
        for sign, told in RUNTIME_ERRORS.items():
            if re.search(sign, str(error)):
                raise UserError(told.format(one_line(error))) from None
        raise


def no_memory(recipe: Recipe, error: BaseException) -> str:
    """The sentence for a memory that is full: what there is to lower, with its present value."""
    data, trainer = recipe.data, recipe.trainer
    which = "GPU's" if isinstance(error, torch.OutOfMemoryError) else "computer's"
    size = f"[{data.size[0]}, {data.size[1]}]" if data.size else "null"
    precision = trainer.get("precision") or ("16-mixed" if which == "GPU's" else "32-true")
    ways = [f"lower data.batch_size (now {data.batch_size})"]
    if data.batch_size > 1:
        ways[0] += (
            f", with trainer.accumulate_grad_batches (now {trainer.get('accumulate_grad_batches') or 1}) raised to"
            " learn from as many images in a step"
        )
    ways.append(f"lower data.size (now {size})")
    if "16" not in str(precision):
        ways.append(f"set --trainer.precision bf16-mixed (now {precision})")
    if which != "GPU's" and data.num_workers:
        ways.append(f"lower data.num_workers (now {data.num_workers})")
    return (
        f"The {which} memory is full ({one_line(error)[:120]}): {'; or '.join(ways)}. Images are measured at their"
        " original size; where these are large, --model.input_size '[512, 512]' bounds it."
    )


NO_MEMORY = r"DefaultCPUAllocator|not enough memory|[cC]annot allocate memory|MemoryError|std::bad_alloc"
NO_WORKERS = (
    "A process that reads images was killed, mostly for lack of memory, or of shared memory (/dev/shm) in a container;"
    " set --data.num_workers 0, or lower data.batch_size."
)
OTHER_STATE = (
    "The run's state does not fit the changed recipe ({0}); start a new run, from the run's weights if you like:"
    " --model.weights RUN."
)
RUNTIME_ERRORS = {
    r"Error\(s\) in loading state_dict": OTHER_STATE,
    r"DataLoader worker \(pid": NO_WORKERS,
    r"Bus error|shared memory|unable to (write to|open) file": NO_WORKERS,
    r"[Cc]onnection (was )?(closed|reset) by|Socket closed": "Another process of this training has ended, and says why"
    " above ({0}).",
    r"deterministic": "trainer.deterministic is set, but a part of this training has no deterministic form on this"
    " device; set it to warn, or leave it out ({0}).",
}
"""What torch says -> what to do about it."""


def one_line(error: BaseException) -> str:
    """An error's message without its line breaks, or its name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
