"""Early stopping: a training ends where the monitor gets no better; Lightning's, as a resumed training needs it."""

from typing import Any

from lightning.pytorch import Trainer, callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from zoo.errors import UserError
from zoo.metrics import LESS_IS_BETTER
from zoo.training.keys import Recipe


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, with the recipe's own patience after a state is read.

    changed: the training is resumed with a changed recipe. Then a stop is decided anew, and a patience that was already
    exhausted begins again. Otherwise a training that had decided to stop before it was interrupted stops.
    """

    def __init__(self, *args: Any, changed: bool = False, **options: Any):
        super().__init__(*args, **options)
        self.changed = changed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})
        if self.changed:
            self.stopped_epoch, self.stopping_reason_message = 0, None
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            if self.wait_count >= self.patience:
                self.wait_count = 0

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """After the state is read."""
        if self.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop = True


def early_stopping(recipe: Recipe, monitor: str | None, *, changed: bool = False) -> list[EarlyStopping]:
    """The recipe's; none without a patience. Raises UserError where there is nothing to judge by."""
    options = recipe.early_stopping
    if options.patience is None:
        return []
    if monitor is None:
        raise UserError(
            f"early_stopping.patience is {options.patience}, but there is nothing to judge by: it needs a monitor and a"
            " val split. Take --early_stopping null, or set --monitor."
        )
    mode = "min" if monitor in LESS_IS_BETTER else "max"
    # a metric without a value is no better, but no reason to stop at once; nor is an epoch that was not validated
    bounds = dict(patience=options.patience, min_delta=options.min_delta, check_finite=False, strict=False)
    return [EarlyStopping(f"val/{monitor}", mode=mode, changed=changed, **bounds)]
