"""Metrics by the name of the task; torchmetrics is imported when they are made, not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zoo.errors import UserError, nearest

if TYPE_CHECKING:
    from torchmetrics import Metric


def _segmentation(task: Any) -> Metric:
    from zoo.metrics.segmentation import SegmentationMetrics

    return SegmentationMetrics(
        task.num_classes, mode=task.mode, ignore_index=task.ignore_index, class_names=task.class_names
    )


METRICS: dict[str, Callable[[Any], Metric]] = {"segmentation": _segmentation}  # a plugin's task adds its own here


def create_metrics(task: Any) -> Metric:
    """The metrics of a task: update(answer, batch) for each batch, then compute() -> dict of scalars.

    Raises UserError where the task has none.
    """
    if task.name not in METRICS:
        raise UserError(f"The task {task.name!r} has no metrics{nearest(task.name, METRICS) or '.'}")
    return METRICS[task.name](task)
