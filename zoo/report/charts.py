"""Charts of numbers: a run's curves, several runs' curves over each other, and a reliability diagram."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zoo.report.figures import WIDTH, save, write_figure

Rows = Sequence[Mapping[str, float]]

LINES = ("#1f77b4", "#d1495b", "#2a9d8f", "#8d5fc4", "#e08e1b", "#6b7280")
MAIN = ("train/loss", "val/mean_iou")  # drawn thicker than the others


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a name is a letter
def curves(rows: Rows, path: str | Path, *, kept: int | None = None, timings: Rows = ()) -> Path:
    """Loss, validation metrics, learning rate and throughput by epoch as a PNG.

    rows, timings: those of metrics.csv and timings.csv; panels without a value are left out. kept: the epoch of the
    checkpoint.
    """
    losses = [name for name in _columns(rows) if name.startswith("train/")]
    panels: list[tuple[str, Rows, list[str]]] = [
        ("training loss", rows, losses if len(losses) != 2 else losses[:1]),  # a total of one term is that term
        ("validation", rows, [name for name in _columns(rows) if name.startswith("val/") and "iou/" not in name]),
        ("learning rate", rows, ["lr"]),
        ("images a second, in training", timings, ["images_per_second"]),
    ]
    panels = [panel for i, panel in enumerate(panels) if i == 0 or any(_points(panel[1], name) for name in panel[2])]
    heights = [2.7 if i < 1 or title == "validation" else 1.5 for i, (title, *_) in enumerate(panels)]
    figure = Figure(figsize=(WIDTH, sum(heights)), dpi=160, layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axis, (title, table, names) in zip(axes, panels, strict=True):
        for name, color in zip(names, LINES * 9, strict=False):
            label = (
                "" if len(names) == 1 and title in ("learning rate", "images a second, in training") else _words(name)
            )
            _line(axis, _points(table, name), color, label, main=name in MAIN or not label)
        if kept is not None and len(rows) > 1:
            axis.axvline(kept, color="#9ca3af", linewidth=1, linestyle="--", zorder=0)
        _dress(axis, title)
        if title == "learning rate":
            axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
            axis.yaxis.get_offset_text().set_fontsize(8)
        if title not in ("training loss", "validation"):
            axis.set_ylim(bottom=0)
    if losses and min((row.get(name, np.nan) for row in rows for name in losses), default=0) >= 0:
        axes[0].set_ylim(bottom=0)
    _by_epoch(axes[-1])
    dashed = f" (dashed: {kept}, which is kept)" if kept is not None and len(rows) > 1 else ""
    axes[-1].set_xlabel(f"epoch{dashed}", fontsize=9)
    return save(figure, path)


@matplotlib.rc_context({"text.parse_math": False})
def overlaid(runs: Mapping[str, Rows], names: Iterable[str]) -> bytes | None:
    """A panel for each of these columns of metrics.csv, a line for each run; as a PNG, None where nothing is there."""
    shown = [name for name in names if any(_points(rows, name) for rows in runs.values())]
    if not shown:
        return None
    figure = Figure(figsize=(WIDTH, 2.7 * len(shown)), dpi=160, layout="constrained")
    axes = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    for axis, name in zip(axes, shown, strict=True):
        for (label, rows), color in zip(runs.items(), LINES * 9, strict=False):
            _line(axis, _points(rows, name), color, label if axis is axes[0] else "", main=False)
        _dress(axis, "training loss" if name == "train/loss" else f"validation: {_words(name)}")
    _by_epoch(axes[-1])
    axes[-1].set_xlabel("epoch", fontsize=9)
    return _bytes(figure)


def reliability(bins: Mapping[str, Sequence[Any]], confidence: str, right: str) -> bytes:
    """The reliability diagram: how often right, by how sure, over the share of pixels in each bin; as a PNG.

    bins: as `zoo.metrics.calibration.reliability` gives them. confidence, right: names of the axes.
    """
    number = len(bins["pixels"])
    figure = Figure(figsize=(WIDTH * 0.72, 4.4), dpi=160, layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
    known = [i for i in range(number) if bins["pixels"][i]]
    places, shares = [(i + 0.5) / number for i in known], [bins["right"][i] for i in known]
    top.bar(places, shares, width=0.94 / number, color="#9cc5e6", label="measured")
    top.plot([bins["confidence"][i] for i in known], shares, "o", color="#1f77b4", markersize=4, label="at its mean")
    top.plot([0, 1], [0, 1], color="#6b7280", linewidth=1, linestyle="--", label="perfectly calibrated")
    top.set(xlim=(0, 1), ylim=(0, 1.02))
    top.set_ylabel(right, fontsize=9)
    top.legend(fontsize=8, frameon=False, loc="upper left")
    total = sum(bins["pixels"])
    below.bar(places, [100 * bins["pixels"][i] / total for i in known], width=0.94 / number, color="#c7cdd6")
    below.set_ylabel("% of pixels", fontsize=9)
    below.set_xlabel(confidence, fontsize=9)
    for axis in (top, below):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    return _bytes(figure)


def _line(axis: Any, points: Sequence[tuple[float, float]], color: str, label: str, *, main: bool) -> None:
    if points:
        axis.plot(
            *zip(*points, strict=True),
            color=color,
            label=label or None,
            linewidth=2 if main else 1.2,
            alpha=1 if main else 0.75,
            marker="o" if len(points) < 16 else None,
            markersize=3,
        )


def _by_epoch(axis: Any) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = axis.get_xlim()
    if high - low < 1:  # one epoch: no room for ticks at whole numbers
        axis.set_xlim(low - 0.5, high + 0.5)


def _dress(axis: Any, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=10)
    axis.grid(color="#e5e7eb", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=9, frameon=False)


def _points(rows: Rows, name: str) -> list[tuple[float, float]]:
    return [(row["epoch"], row[name]) for row in rows if np.isfinite(row.get(name, np.nan))]


def _columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _words(name: str) -> str:
    return name.partition("/")[2].replace("_", " ")


def _bytes(figure: Figure) -> bytes:
    file = io.BytesIO()
    write_figure(figure, file)
    return file.getvalue()
