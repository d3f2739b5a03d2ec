"""Pictures of images: samples of a run, and a data set's contact sheet. Takes arrays and numbers, no tensors."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from zoo.files import aside
from zoo.prediction import Color, Prediction

WIDTH = 6.2  # inches: text of 9 points is still legible when a phone shows the picture at its own width
RIGHT, WRONG, EXTRA, MISSED = (235, 235, 235), (214, 40, 57), (240, 150, 20), (30, 100, 220)
IGNORED = (120, 120, 120)
SHEET = 4  # samples in a row of the contact sheet
INSET = 320  # pixels: the longest side of a picture in the figure


@dataclass(frozen=True)
class Sample:
    """One image with what is true and what was answered.

    image: (H, W, C), uint8, or float of any range. truth, prediction: ids (H, W), or (K, H, W) bool where classes
    overlap. ignore: the id in `truth` that does not count. name: written beside it.
    """

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    ignore: int | None = 255
    name: str = ""


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a name is a letter
def samples(found: Sequence[Sample], names: Sequence[str], colors: Sequence[Color], path: str | Path) -> Path:
    """A row for each sample: image, truth, prediction, error; as a PNG.

    names, colors (RGB, 0-255): one for each class; of the foreground alone in binary segmentation. A class named
    "background" is left dark. Errors of one foreground class: too much and missed; else right and wrong.
    """
    binary = len(names) == 1
    heights = [min(1.6, WIDTH / 4.1 * s.image.shape[0] / max(1, s.image.shape[1])) + 0.22 for s in found]
    legend = 0.32 * (1 + (len(names) + 2) // 5) + 0.1
    total = sum(heights) + legend + 0.25
    figure = Figure(figsize=(WIDTH, total), dpi=200)
    grid = figure.add_gridspec(
        len(found), 4, height_ratios=heights, left=0.005, right=0.995, wspace=0.03, hspace=0.12,
        bottom=legend / total, top=1 - 0.25 / total,
    )  # fmt: skip
    for row, sample in enumerate(found):
        pictures = {
            "image": picture(sample.image),
            "truth": painted(sample.truth, names, colors, sample.ignore),
            "prediction": painted(sample.prediction, names, colors, None),
            "error": errors(sample, binary=binary),
        }
        for column, (title, pixels) in enumerate(pictures.items()):
            panel = figure.add_subplot(grid[row, column])
            panel.imshow(_shrunk(pixels, smooth=title == "image"), interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_color("#d1d5db")
            if row == 0:
                panel.set_title(title, fontsize=10)
            if title == "error":
                panel.set_xlabel(
                    f"{'IoU' if binary else 'mean IoU'} {mean_iou(sample, len(names)):.2f}", fontsize=8, labelpad=2
                )
            if title == "image" and sample.name:
                panel.set_xlabel(sample.name[-24:], fontsize=7, labelpad=2)
    marks = [(name, color) for name, color in zip(names, colors, strict=True) if name != "background"]
    marks += [("too much", EXTRA), ("missed", MISSED)] if binary else [("wrong", WRONG)]
    if any(s.ignore is not None and (s.truth == s.ignore).any() for s in found):
        marks.append(("not counted", IGNORED))
    _legend(figure, marks)
    return save(figure, path)


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a name is a letter
def contact_sheet(found: Iterable[Sample], names: Sequence[str], colors: Sequence[Color], path: str | Path) -> Path:
    """Each sample's image beside its truth over the image, four samples in a row, with its name; as a PNG.

    Predictions are not shown. Samples are taken one by one, so that large images fit. names, colors: as in `samples`.
    """
    shown = []
    for sample in found:
        image = picture(sample.image)
        over = painted_over(image, sample.truth, names, colors, sample.ignore)
        shown.append((_shrunk(image, smooth=True), _shrunk(over, smooth=False), sample.name))
    rows = [shown[start : start + SHEET] for start in range(0, len(shown), SHEET)]
    cell = WIDTH / SHEET  # inches of one picture, in a sheet twice as wide as the other figures
    heights = [cell * min(2, max(one.shape[0] / one.shape[1] for one, *_ in row)) + 0.25 for row in rows]
    legend = 0.3 * (1 + (len(names) + 4) // 5)
    total = sum(heights) + legend
    figure = Figure(figsize=(WIDTH * 2, total), dpi=120)
    grid = figure.add_gridspec(
        len(rows), 2 * SHEET, height_ratios=heights, left=0.005, right=0.995, wspace=0.03, hspace=0.12,
        bottom=(legend + 0.15) / total, top=0.995,
    )  # fmt: skip
    for number, row in enumerate(rows):
        for place, (image, over, name) in enumerate(row):
            for side, pixels in enumerate((image, over)):
                panel = figure.add_subplot(grid[number, place * 2 + side])
                panel.imshow(pixels, interpolation="nearest")
                panel.set_axis_off()
                panel.set_anchor("SW")  # names are below, all at one height
            panel.text(-1.02, -0.03, name[-44:], fontsize=7, va="top", transform=panel.transAxes)
    marks = [(name, color) for name, color in zip(names, colors, strict=True) if name != "background"]
    _legend(figure, [*marks, ("ignored: striped", IGNORED)])
    return save(figure, path)


def painted_over(
    image: np.ndarray, mask: np.ndarray, names: Sequence[str], colors: Sequence[Color], ignore: int | None
) -> np.ndarray:
    """(H, W, 3) uint8: the classes of `mask` (H, W) half transparent over the image, ignored pixels striped."""
    canvas = np.array(Prediction(image, {"mask": mask}, class_names=names, class_colors=colors).overlay(opacity=0.55))
    if ignore is not None:
        rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
        stripes = (rows + columns) // max(2, max(mask.shape) // 48) % 2 == 0
        canvas[(mask == ignore) & stripes] = IGNORED
        canvas[(mask == ignore) & ~stripes] = RIGHT
    return canvas


def picture(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of an image with any number of channels; floats beyond [0, 1] are stretched to it."""
    return np.asarray(Prediction(image, {}).overlay())


def painted(mask: np.ndarray, names: Sequence[str], colors: Sequence[Color], ignore: int | None) -> np.ndarray:
    """(H, W, 3) uint8: each class of `mask` in its colour, background dark, ignored pixels grey."""
    dark = np.full((*mask.shape[-2:], 3), 24, np.uint8)
    arrays = {"mask": mask.astype(bool) if mask.ndim == 3 else mask}
    canvas = np.array(Prediction(dark, arrays, class_names=names, class_colors=colors).overlay(opacity=1))
    if ignore is not None and mask.ndim == 2:
        canvas[mask == ignore] = IGNORED
    return canvas


def errors(sample: Sample, *, binary: bool) -> np.ndarray:
    """(H, W, 3) uint8: where truth and prediction differ, over the pale image."""
    grey = picture(sample.image).mean(axis=2, keepdims=True)
    canvas = np.repeat(255 - (255 - grey) * 0.35, 3, axis=2).astype(np.uint8)
    truth, prediction = sample.truth.astype(np.int64), sample.prediction.astype(np.int64)
    if truth.ndim == 3:
        canvas[(truth != prediction).any(axis=0)] = WRONG
        return canvas
    counts = np.ones_like(truth, dtype=bool) if sample.ignore is None else truth != sample.ignore
    if binary:
        canvas[(prediction == 1) & (truth == 0)] = EXTRA
        canvas[(prediction == 0) & (truth == 1)] = MISSED
    else:
        canvas[(truth != prediction) & counts] = WRONG
    canvas[~counts] = IGNORED
    return canvas


def mean_iou(sample: Sample, classes: int) -> float:
    """The foreground's IoU in binary; else the mean over the classes that are in the truth or the prediction."""
    truth, prediction = sample.truth, sample.prediction
    if truth.ndim == 3:
        pairs = list(zip(truth.astype(bool), prediction.astype(bool), strict=True))
    else:
        counts = np.ones(truth.shape, bool) if sample.ignore is None else truth != sample.ignore
        ids = [1] if classes == 1 else range(classes)
        pairs = [((truth == k) & counts, (prediction == k) & counts) for k in ids]
    found = [(a & b).sum() / union for a, b in pairs if (union := (a | b).sum())]
    return float(np.mean(found)) if found else float("nan")


def _shrunk(pixels: np.ndarray, *, smooth: bool) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = INSET / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.BOX if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def _legend(figure: Figure, marks: Sequence[tuple[str, Color]]) -> None:
    columns = -(-len(marks) // -(-len(marks) // 5))  # at most five in a line, lines about equally long
    handles = [
        Patch(facecolor="#{:02x}{:02x}{:02x}".format(*color), edgecolor="#9ca3af", label=name) for name, color in marks
    ]
    figure.legend(handles=handles, loc="lower center", ncols=columns, fontsize=9, frameon=False, handlelength=1.2)


def save(figure: Any, path: str | Path) -> Path:
    """Write a figure as PNG, aside first, then renamed."""
    with aside(path) as temporary:
        write_figure(figure, temporary)
    return Path(path)


def write_figure(figure: Any, file: Any) -> None:
    """Save as PNG, the same bytes for the same figure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that the font lacks become boxes, and that's no news
        figure.savefig(file, format="png", facecolor="white", metadata={"Software": None})
