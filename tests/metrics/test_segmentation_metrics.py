"""Segmentation metrics against sets of pixels, counted without the library."""

import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import UserError
from zoo.metrics import create_metrics
from zoo.tasks import Segmentation


def measure(task, *pairs):
    """compute() after one update for each (predicted, truth)."""
    metrics = create_metrics(task)
    for predicted, truth in pairs:
        metrics.update({"mask": torch.as_tensor(predicted)}, {"mask": torch.as_tensor(truth)})
    result = metrics.compute()
    assert all(value.dtype == torch.float32 and value.ndim == 0 for value in result.values())
    return {name: value.item() for name, value in result.items()}


def overlap_of(pairs):
    """(IoU, Dice) of two sets of pixels per class; pairs: (predicted, truth) for each class, boolean and flat."""
    ious, dices = [], []
    for predicted, truth in pairs:
        p, t = set(np.flatnonzero(predicted)), set(np.flatnonzero(truth))
        ious.append(len(p & t) / len(p | t) if p | t else math.nan)
        dices.append(2 * len(p & t) / (len(p) + len(t)) if p | t else math.nan)
    return ious, dices


def mean(values):
    present = [v for v in values if not math.isnan(v)]
    return sum(present) / len(present) if present else math.nan


def images(seed, classes, extra=()):
    """A few (predicted, truth) of different sizes; often some class is absent."""
    rng = np.random.default_rng(seed)
    held = rng.choice(classes, rng.integers(1, classes + 1), replace=False)
    for _ in range(rng.integers(1, 4)):
        shape = (rng.integers(1, 3), *rng.integers(1, 7, 2))
        yield rng.choice(held, shape).astype(np.uint8), rng.choice([*held, *extra], shape).astype(np.int64)


def flat(arrays):
    return np.concatenate([a.ravel() for a in arrays])


@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 6), ignore=st.sampled_from([255, 0, -1, None]))
@settings(max_examples=60, deadline=None)
def test_multiclass_figures_equal_those_of_pixel_sets(seed, classes, ignore):
    pairs = list(images(seed, classes, extra=() if ignore is None else (ignore,)))
    result = measure(Segmentation(classes, ignore_index=ignore), *pairs)
    predicted, truth = flat(p for p, _ in pairs), flat(t for _, t in pairs)
    keep = truth != ignore if ignore is not None else truth >= 0
    predicted, truth = predicted[keep], truth[keep]
    ious, dices = overlap_of([(predicted == k, truth == k) for k in range(classes)])
    expected = {f"iou/{k}": iou for k, iou in enumerate(ious)}
    expected |= {"mean_iou": mean(ious), "dice": mean(dices)}
    expected["accuracy"] = float((predicted == truth).mean()) if len(truth) else math.nan
    assert result == pytest.approx(expected, abs=1e-6, nan_ok=True)


@given(seed=st.integers(0, 2**32 - 1), soft=st.booleans())
@settings(max_examples=60, deadline=None)
def test_binary_figures_equal_those_of_pixel_sets(seed, soft):
    pairs = list(images(seed, 2, extra=(255,)))
    given_pairs = pairs
    if soft:  # below, at and above one half; at one half is background
        values = {0: [0.0, 0.3, 0.5], 1: [0.51, 0.8, 1.0], 255: [255.0]}
        rng = np.random.default_rng(seed)
        pick = np.vectorize(lambda t: rng.choice(values[int(t)]), otypes=[np.float32])
        given_pairs = [(p, pick(t)[:, None]) for p, t in pairs]
    result = measure(Segmentation(1), *given_pairs)
    predicted, truth = flat(p for p, _ in pairs), flat(t for _, t in pairs)
    predicted, truth = predicted[truth != 255], truth[truth != 255]
    ious, dices = overlap_of([(predicted == k, truth == k) for k in (0, 1)])
    accuracy = float((predicted == truth).mean()) if len(truth) else math.nan
    expected = {"iou": ious[1], "dice": dices[1], "mean_iou": mean(ious), "accuracy": accuracy}
    assert result == pytest.approx(expected, abs=1e-6, nan_ok=True)


@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 4), dtype=st.sampled_from([bool, np.uint8]))
@settings(max_examples=60, deadline=None)
def test_multilabel_figures_equal_those_of_pixel_sets(seed, classes, dtype):
    rng = np.random.default_rng(seed)
    shapes = [(rng.integers(1, 3), classes, *rng.integers(1, 6, 2)) for _ in range(2)]
    pairs = [(rng.random(s) < 0.3, (rng.random(s) < 0.2).astype(dtype)) for s in shapes]
    result = measure(Segmentation(classes, mode="multilabel"), *pairs)
    of_class = [(flat(p[:, k] for p, _ in pairs), flat(t[:, k] for _, t in pairs)) for k in range(classes)]
    ious, dices = overlap_of(of_class)
    expected = {f"iou/{k}": iou for k, iou in enumerate(ious)}
    expected |= {"mean_iou": mean(ious), "dice": mean(dices)}
    expected["accuracy"] = float((flat(p for p, _ in pairs) == flat(t for _, t in pairs)).mean())
    assert result == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_a_missed_class_and_a_class_predicted_in_vain_both_count_as_zero():
    truth, predicted = np.array([[[0, 0, 1, 1]]]), np.array([[[0, 0, 2, 2]]], dtype=np.uint8)
    result = measure(Segmentation(4), (predicted, truth))
    assert (result["iou/0"], result["iou/1"], result["iou/2"]) == (1, 0, 0)
    assert math.isnan(result["iou/3"])
    assert result["mean_iou"] == pytest.approx(1 / 3)
    assert result["dice"] == pytest.approx(1 / 3)


def test_an_empty_prediction_of_a_structure_has_dice_zero():
    result = measure(Segmentation(1), (np.zeros((1, 4, 4), np.uint8), np.ones((1, 4, 4), np.int64)))
    assert result == {"iou": 0, "dice": 0, "mean_iou": 0, "accuracy": 0}


def test_a_structure_nowhere_and_not_predicted_has_no_iou():
    result = measure(Segmentation(1), (np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4), np.int64)))
    assert math.isnan(result["iou"])
    assert math.isnan(result["dice"])
    assert result["mean_iou"] == result["accuracy"] == 1


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_where_nothing_is_measured_nothing_is_claimed():
    for task in (Segmentation(1), Segmentation(3), Segmentation(2, mode="multilabel")):
        assert all(math.isnan(value) for value in measure(task).values())
    ignored = (np.zeros((1, 4, 4), np.uint8), np.full((1, 4, 4), 255))
    assert all(math.isnan(value) for value in measure(Segmentation(3), ignored).values())


def test_classes_are_named_in_the_figures():
    task = Segmentation(2, class_names=["sky", "road"])
    result = measure(task, (np.array([[[0, 1]]], np.uint8), np.array([[[0, 1]]])))
    assert result == {"mean_iou": 1, "dice": 1, "accuracy": 1, "iou/sky": 1, "iou/road": 1}


def test_processes_add_up_their_counts_and_a_reset_forgets_them():
    task, pairs = Segmentation(3), [*images(1, 3), *images(2, 3), *images(3, 3)]
    first, second = create_metrics(task), create_metrics(task)
    for i, (predicted, truth) in enumerate(pairs):
        metrics = first if i % 2 else second
        metrics.update({"mask": torch.from_numpy(predicted)}, {"mask": torch.from_numpy(truth)})
    first.merge_state(second)
    together = {name: value.item() for name, value in first.compute().items()}
    assert together == pytest.approx(measure(task, *pairs), nan_ok=True)
    first.reset()
    assert first.confusion.sum() == 0


@pytest.mark.parametrize(
    ("task", "predicted", "truth", "sentence"),
    [
        (Segmentation(3), np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 5), np.int64), "measure at the mask's size"),
        (Segmentation(3), np.zeros((1, 4, 4), np.uint8), np.full((1, 4, 4), 7), "16 pixels have ids .* such as 7"),
        (Segmentation(3), np.zeros((1, 4, 4), np.uint8), np.full((1, 4, 4), -1), "such as -1"),
        (Segmentation(3), np.full((1, 4, 4), 9, np.uint8), np.zeros((1, 4, 4), np.int64), "such as 9"),
        (
            Segmentation(2, mode="multilabel"),
            np.zeros((1, 2, 4, 4), bool),
            np.full((1, 2, 4, 4), 255, np.uint8),
            "32 pixels have ids",
        ),
    ],
)
def test_what_cannot_be_counted_is_refused_and_changes_nothing(task, predicted, truth, sentence):
    metrics = create_metrics(task)
    with pytest.raises(UserError, match=sentence):
        metrics.update({"mask": torch.from_numpy(predicted)}, {"mask": torch.from_numpy(truth)})
    assert metrics.confusion.sum() == 0


def test_a_task_without_metrics_is_named():
    with pytest.raises(UserError, match="'segmentatoin' has no metrics - did you mean 'segmentation'"):
        create_metrics(SimpleNamespace(name="segmentatoin"))


def test_neither_tasks_nor_the_look_up_import_torchmetrics():
    code = "import sys, zoo.tasks, zoo.metrics; sys.exit('torchmetrics' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
