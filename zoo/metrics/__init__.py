"""Metrics by the name of the task, and published protocols; torchmetrics is imported when they are made, not before."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import UserError, nearest

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection

    from zoo.metrics.images import ImageCounts


def _segmentation(task: Any) -> Metric:
    from zoo.metrics.segmentation import SegmentationMetrics

    return SegmentationMetrics(
        task.num_classes, mode=task.mode, ignore_index=task.ignore_index, class_names=task.class_names
    )


def _counts_of_segmentation(task: Any, paths: Sequence[str]) -> ImageCounts:
    from zoo.metrics.images import ImageCounts

    options = dict(mode=task.mode, ignore_index=task.ignore_index, class_names=task.class_names)
    return ImageCounts(paths, task.num_classes, **options)


def _pranet(task: Any, *, u8: bool = True) -> Metric:
    from zoo.metrics.pranet import PraNetMetrics

    if getattr(task, "mode", None) != "binary":
        raise UserError(
            "The protocol 'pranet' measures the probabilities of one foreground, so it needs a binary segmentation;"
            f" this task has {task.num_classes} classes. Take --protocol null."
        )
    if not isinstance(u8, bool):
        raise UserError(f"The option u8 of the protocol 'pranet' is true or false, not {u8!r}.")
    return PraNetMetrics(u8=u8)


METRICS: dict[str, Callable[[Any], Metric]] = {"segmentation": _segmentation}  # a plugin's task adds its own here
PROTOCOLS: dict[str, Callable[..., Metric]] = {"pranet": _pranet}  # (task, **options); a plugin adds its own here
COUNTS: dict[str, Callable[[Any, Sequence[str]], ImageCounts]] = {"segmentation": _counts_of_segmentation}
LESS_IS_BETTER = {"mae"}  # figures whose best epoch is the lowest; a plugin adds its own here


def create_metrics(task: Any, protocol: Mapping[str, Any] | None = None) -> Metric | MetricCollection:
    """The metrics of a task: update(answer, batch) for each batch, then compute() -> dict of scalars.

    protocol: {"name": ..., option: value} of a published evaluation whose figures join the task's own. Raises
    UserError where the task has no metrics, there is no such protocol, or the protocol does not suit the task.
    """
    if task.name not in METRICS:
        raise UserError(f"The task {task.name!r} has no metrics{nearest(task.name, METRICS) or '.'}")
    own = METRICS[task.name](task)
    if protocol is None:
        return own
    from torchmetrics import MetricCollection

    # no compute groups: they would look for metrics of equal state after the first batch, at a cost, to merge them
    return MetricCollection([own, _create_protocol(task, protocol)], compute_groups=False)


def create_counts(task: Any, paths: Sequence[str]) -> ImageCounts | None:
    """What a test of these images counts beside the metrics; None where the task has nothing of the kind."""
    return COUNTS[task.name](task, paths) if task.name in COUNTS else None


def _create_protocol(task: Any, protocol: Mapping[str, Any]) -> Metric:
    name, options = protocol.get("name"), {key: value for key, value in protocol.items() if key != "name"}
    if not isinstance(name, str) or name not in PROTOCOLS:
        raise UserError(
            f"There is no protocol {name!r}{nearest(str(name), PROTOCOLS) or '.'}"
            f" Protocols: {', '.join(PROTOCOLS)}; null measures the task's own metrics alone."
        )
    known = list(inspect.signature(PROTOCOLS[name]).parameters)[1:]
    for option in options:
        if option not in known:
            raise UserError(
                f"The protocol {name!r} has no option {option!r}{nearest(option, known) or '.'}"
                f" It has: {', '.join(known) or 'none'}."
            )
    return PROTOCOLS[name](task, **options)
