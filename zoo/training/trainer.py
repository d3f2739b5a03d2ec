"""Lightning's Trainer as a run uses it."""

from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from zoo.errors import UserError
from zoo.training.state import Whole
from zoo.training.surroundings import one_line


def create_trainer(options: dict[str, Any], callbacks: list[Any], logger: Any = False) -> Trainer:
    """Lightning's Trainer with a run's defaults under the recipe's `trainer`; on all devices unless it says otherwise.

    Raises UserError where the keys don't fit.
    """
    gpu = torch.cuda.is_available() and options.get("accelerator", "auto") in ("auto", "gpu", "cuda")
    defaults = {"precision": "16-mixed" if gpu else "32-true"}
    own = dict(
        callbacks=callbacks, logger=logger, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        plugins=[Whole()],
    )  # fmt: skip
    try:
        return Trainer(**{**defaults, **options, **own})
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"The recipe's trainer keys do not fit: {one_line(error)}") from None


def effective_batch(trainer: Trainer, batch_size: int) -> str | None:
    """A sentence where an optimiser step learns from more images than a batch of the recipe holds."""
    devices, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    if devices * accumulated == 1:
        return None
    return (
        f"each optimiser step learns from {devices * batch_size * accumulated} images ({devices} device"
        f"{'s' * (devices != 1)} x data.batch_size {batch_size} x {accumulated} accumulated); optimizer.lr is used as"
        " it is."
    )
