import csv
import io
import math
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import Timer
from rich.console import Console

from zoo.training.callbacks import Keep, Show, Tables, _left, clock, write_table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (41.4, "41 s"), (200, "3 min 20 s"), (59.99, "60 s"), (3599.9, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert clock(seconds) == text


def test_a_table_takes_columns_that_come_later_and_leaves_nothing_beside_it(tmp_path):
    write_table(tmp_path / "t.csv", [{"epoch": 1, "a": 1 / 3}, {"epoch": 2, "b": 2.0}], digits=4)
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"epoch": "1", "a": "0.3333", "b": ""}, {"epoch": "2", "a": "", "b": "2"}]
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def shown(every, *, terminal):
    """What `Show` writes over ten steps of an epoch."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120)
    show = Show(console, Tables(None), Keep(None, None), every=every)
    trainer = SimpleNamespace(current_epoch=0, global_step=0, max_epochs=3, num_training_batches=10)
    module = SimpleNamespace(mean_loss=lambda: 0.5)
    show.on_train_start(trainer, module)
    show.on_train_epoch_start(trainer, module)
    for index in range(10):
        show.on_train_batch_end(trainer, module, None, {}, index)
    show.on_train_epoch_end(trainer, module)
    return file.getvalue()


def test_without_a_terminal_there_is_a_plain_line_now_and_then():
    lines = shown(0.0, terminal=False).splitlines()
    assert lines[0].startswith("epoch 1/3, step 1/10: loss 0.5000")
    assert len(lines) == 9  # the last step's line is the epoch's
    assert shown(30.0, terminal=False) == ""


@pytest.mark.parametrize(
    ("bounds", "left"),
    [
        ({"max_epochs": 5}, 30),  # two of five epochs took 20 s
        ({"max_epochs": -1, "max_steps": 12}, 4),
        ({"max_epochs": 5, "max_steps": 12}, 4),
        ({"max_epochs": -1}, math.inf),
    ],
)
def test_the_time_left_is_that_to_the_nearest_bound(bounds, left):
    trainer = SimpleNamespace(**{"current_epoch": 1, "global_step": 10, "max_steps": -1, "callbacks": [], **bounds})
    assert _left(trainer, 20.0) == pytest.approx(left)


def test_a_bound_on_time_counts_as_what_remains_of_it():
    timer = Timer("00:00:00:07")
    trainer = SimpleNamespace(current_epoch=1, global_step=10, max_epochs=5, max_steps=-1, callbacks=[timer])
    assert _left(trainer, 20.0) == pytest.approx(7, abs=1)


def test_on_a_terminal_there_is_a_bar():
    text = shown(30.0, terminal=True)
    assert "epoch 1/3" in text
    assert "10/10" in text
    assert "step" not in text


def test_a_changed_monitor_is_compared_with_the_kept_epochs_own_score_of_it():
    before, tables = Keep(None, "accuracy"), Tables(None)
    before.epoch, before.score = 2, 0.7466
    tables.metrics = [{"epoch": 1, "val/iou": 0.05}, {"epoch": 2, "val/iou": 0.03, "val/accuracy": 0.7466}]
    for monitor, score in (("accuracy", 0.7466), ("iou", 0.03), ("dice", math.nan), (None, math.nan)):
        keep = Keep(None, monitor, tables)
        keep.load_state_dict(before.state_dict())
        assert keep.epoch == 2
        assert keep.score == pytest.approx(score, nan_ok=True)
