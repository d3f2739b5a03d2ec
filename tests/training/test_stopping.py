from types import SimpleNamespace

import pytest
import torch

from tests.training.discs import recipe_of
from zoo.training.stopping import early_stopping


def stopping(folder, patience, *, changed=False):
    recipe = recipe_of(folder, folder, "--early_stopping", str(patience))
    (stop,) = early_stopping(recipe, "iou", changed=changed)
    trainer = SimpleNamespace(callback_metrics={}, should_stop=False, fast_dev_run=False, current_epoch=0)
    trainer.strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
    return stop, trainer


def validate(stop, trainer, *scores):
    """The number of epochs after which it stops; all where it doesn't."""
    for epoch, score in enumerate(scores):
        trainer.current_epoch = epoch
        trainer.callback_metrics = {} if score is None else {"val/iou": torch.tensor(score)}
        stop._run_early_stopping_check(trainer)
        if trainer.should_stop:
            return epoch + 1
    return len(scores)


@pytest.fixture
def stopped(tmp_path):
    stop, trainer = stopping(tmp_path, 2)
    assert validate(stop, trainer, 0.5, 0.4, 0.4, 0.4) == 3
    return stop.state_dict()


def test_an_epoch_that_was_not_validated_is_no_reason_to_stop(tmp_path):
    stop, trainer = stopping(tmp_path, 1)
    assert validate(stop, trainer, None, None, 0.5) == 3
    assert not trainer.should_stop


def test_a_stop_already_decided_is_kept_by_a_resume(tmp_path, stopped):
    stop, trainer = stopping(tmp_path, 2)
    stop.on_fit_start(trainer, None)
    assert not trainer.should_stop
    stop.load_state_dict(stopped)
    stop.on_fit_start(trainer, None)
    assert trainer.should_stop
    assert stop.stopping_reason_message


@pytest.mark.parametrize(("patience", "epochs"), [(2, 2), (4, 2), (3, 1), (1, 1)])
def test_a_prolonged_training_has_the_recipes_patience(tmp_path, stopped, patience, epochs):
    stop, trainer = stopping(tmp_path, patience, changed=True)
    stop.load_state_dict(stopped)
    stop.on_fit_start(trainer, None)
    assert not trainer.should_stop
    assert stop.stopping_reason_message is None  # the report says that it ended early only where it does again
    assert validate(stop, trainer, 0.4, 0.4, 0.4, 0.4) == epochs


def test_where_it_had_not_stopped_it_goes_on_counting(tmp_path):
    before, trainer = stopping(tmp_path, 2)
    validate(before, trainer, 0.5, 0.4)
    for changed in (False, True):
        stop, trainer = stopping(tmp_path, 2, changed=changed)
        stop.load_state_dict(before.state_dict())
        assert validate(stop, trainer, 0.4, 0.4) == 1
