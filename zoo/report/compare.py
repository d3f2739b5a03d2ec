"""`zoo compare`: runs tested on the same images, each against the first, with intervals of the differences.

Differences are paired: an image that is hard is hard for all, so what is resampled is the images, for both at once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.files import aside
from zoo.metrics.bootstrap import Interval, differences, intervals
from zoo.metrics.counts import TABLE, Counts, read_counts
from zoo.report.charts import overlaid
from zoo.report.html import bounds, number, page, picture, quiet, words
from zoo.report.page import DETAILS, how, kinds, read_json, read_table


@dataclass(frozen=True)
class Run:
    """A run to compare: what it is called, its folder, its resolved recipe, and what was counted on each split."""

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    tests: Mapping[str, Counts]


@dataclass(frozen=True)
class Row:
    """A run's figure, and how much more it is than the first run's."""

    metric: str
    run: str
    value: Interval
    difference: Interval | None


@dataclass(frozen=True)
class Comparison:
    """What was found on a split: n images that all runs have measured, a row for each metric and run, and remarks."""

    split: str
    images: int
    rows: list[Row]
    notes: list[str]


def read_run(name: str, folder: Path, recipe: Mapping[str, Any]) -> Run:
    """A run as its folder has it. Raises UserError where it was never tested, or not yet image by image."""
    measured = {split for split, found in read_json(folder / "test.json").items() if "notice" not in found}
    if not measured:
        raise UserError(f"The run {name!r} has no test figures yet; `zoo test {folder}` makes them.")
    tests = read_counts(folder / TABLE, kinds(read_json(folder / DETAILS)))
    tests = {split: counts for split, counts in tests.items() if split in measured}
    if not tests:
        raise UserError(
            f"The run {name!r} was tested, but its figures of each image ({TABLE}) are not there; `zoo test {folder}`"
            " makes them."
        )
    return Run(name, folder, recipe, tests)


def compare(runs: Sequence[Run], split: str | None = None) -> list[Comparison]:
    """Each split that all runs were tested on; split: that one alone.

    Raises UserError where there is no such split, where the runs have no image in common, other classes, or other
    masks for an image of one name.
    """
    first = runs[0]
    shared = [name for name in first.tests if all(name in run.tests for run in runs) and split in (None, name)]
    if not shared:
        tested = "; ".join(f"{run.name}: {', '.join(run.tests)}" for run in runs)
        wanted = f"the split {split!r}" if split else "one split"
        raise UserError(
            f"The runs were not all tested on {wanted} ({tested}); `zoo test RUN --split NAME` measures a run on one."
        )
    found = [_compare_on(runs, name) for name in shared]
    if not any(one.images for one in found):
        told = "; ".join(f"{run.name}: {', '.join([*run.tests[shared[0]].images[:1], '...'])}" for run in runs)
        raise UserError(
            f"The runs have no image in common on {', '.join(shared)} ({told}); images are matched by their names below"
            " the data's root."
        )
    return [one for one in found if one.images]


def _compare_on(runs: Sequence[Run], split: str) -> Comparison:
    tests, first = [run.tests[split] for run in runs], runs[0].tests[split]
    for run, other in zip(runs, tests, strict=True):
        if (other.mode, other.classes) != (first.mode, first.classes):
            raise UserError(
                f"The runs have other classes, {runs[0].name}: {_listed(first.classes)}; {run.name}:"
                f" {_listed(other.classes)}; figures of other classes cannot be compared."
            )
    common = sorted(set.intersection(*(set(test.images) for test in tests)))
    aligned = []
    for run, test in zip(runs, tests, strict=True):
        place = {image: i for i, image in enumerate(test.images)}
        aligned.append(test.take([place[image] for image in common]))
        same = (aligned[-1].truth == aligned[0].truth).all(axis=1)
        if not same.all():
            image = common[int((~same).argmax())]
            raise UserError(
                f"The image {image!r} of the split {split!r} has another mask in {run.name} than in {runs[0].name}, so"
                " the runs were tested on other data; `zoo test` both on the same."
            )
    if not common:
        return Comparison(split, 0, [], [])
    notes = [
        f"{run.name} was tested on {len(test.images)} images of this split, {len(common)} of which all runs have;"
        " only these are compared."
        for run, test in zip(runs, tests, strict=True)
        if len(test.images) > len(common)
    ]
    trained = [(run, _trained_on(run, common)) for run in runs]
    notes += [
        f"{run.name} was trained on {count} of these images, which flatters it." for run, count in trained if count
    ]
    values = [intervals(one) for one in aligned]
    others = [None, *(differences(aligned[0], one) for one in aligned[1:])]
    rows = [
        Row(metric, run.name, own[metric], less[metric] if less else None)
        for metric in values[0]
        if not metric.startswith(("dice/", "precision/", "recall/"))
        for run, own, less in zip(runs, values, others, strict=True)
    ]
    return Comparison(split, len(common), rows, notes)


def _trained_on(run: Run, images: Sequence[str]) -> int:
    """How many of the images are in the run's train split."""
    train = read_json(run.folder / "splits.json").get("train", [])
    return len(set(images) & {Path(image).as_posix() for _, image, _ in train})


def recipe_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(dotted key, its value in each run) of every recipe key that is not the same in all."""
    flat = [_flat(run.recipe) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, [one.get(key, "-") for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(value: Any, key: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        below = [_flat(inner, f"{key}.{name}" if key else str(name)) for name, inner in value.items()]
        return {name: text for one in below for name, text in one.items()}
    return {key: json.dumps(value, ensure_ascii=False, default=str)}


def write_comparison(runs: Sequence[Run], found: Sequence[Comparison], path: str | Path) -> Path:
    """Write the page. Returns its path."""
    sections = [
        f"<h1>{len(runs)} runs compared</h1>",
        f"<p>Each against the first, <b>{escape(runs[0].name)}</b>, on the images that all of them have measured.</p>",
        *(_section(one) for one in found),
        _recipes(runs),
        _curves(runs),
        "<h2>Do it yourself</h2><pre>" + escape(f"zoo compare {' '.join(str(run.folder) for run in runs)}") + "</pre>",
    ]
    with aside(path) as temporary:
        temporary.write_text(page("Runs compared", sections), encoding="utf-8", errors="surrogateescape")
    return Path(path)


def _section(found: Comparison) -> str:
    """A table of the overall figures, and one, folded up, of each class."""
    overall, classes = ([row for row in found.rows if ("/" in row.metric) == by_class] for by_class in (False, True))
    notes = "".join(f'<p class="notice">{escape(note)}</p>' for note in found.notes)
    told = quiet(
        f"n = {found.images} images. In bold: the 95 % interval of the difference leaves out 0. Intervals are"
        f" {how(found.images)} Of many differences a few leave out 0 by chance."
    )
    folded = f"<details><summary>IoU of each class</summary>{_rows(classes)}</details>" if classes else ""
    return f"<h2>On the {escape(found.split)} split</h2>{notes}{_rows(overall)}{told}{folded}"


def _rows(rows: Sequence[Row]) -> str:
    body, before = "", ""
    for row in rows:
        if row.metric != before:
            body += f'<tr><th colspan="3">{escape(words(row.metric))}</th></tr>'
            before = row.metric
        difference = ""
        if row.difference:
            strong = ("<b>", "</b>") if row.difference.excludes_zero else ("", "")
            value = "-" if row.difference.value != row.difference.value else f"{row.difference.value:+.4f}"
            difference = f"{strong[0]}{value}{strong[1]}<br><small>{bounds(row.difference, sign=True)}</small>"
        figure = f"{number(row.value.value)}<br><small>{bounds(row.value)}</small>"
        body += (
            f'<tr><td class="text">{escape(row.run)}</td><td class="number">{figure}</td>'
            f'<td class="number">{difference}</td></tr>'
        )
    heads = '<tr><th>run</th><th class="number">figure</th><th class="number">difference</th></tr>'
    return f'<div class="wide"><table class="close">{heads}{body}</table></div>'


def _recipes(runs: Sequence[Run]) -> str:
    rows = recipe_differences(runs)
    if not rows:
        return f"<h2>Recipes</h2>{quiet('All recipes are the same, key by key.')}"
    body = ""
    for key, values in rows:
        body += f'<tr><th colspan="2">{escape(key)}</th></tr>'
        for run, value in zip(runs, values, strict=True):
            body += f'<tr><td class="text">{escape(run.name)}</td><td class="text">{escape(value)}</td></tr>'
    return f'<h2>What differs in the recipes</h2><div class="wide"><table class="close">{body}</table></div>'


def _curves(runs: Sequence[Run]) -> str:
    tables = {run.name: read_table(run.folder / "metrics.csv") for run in runs}
    columns = [f"val/{run.recipe['monitor']}" for run in runs if run.recipe.get("monitor")]
    png = overlaid(tables, dict.fromkeys(["train/loss", *columns]))
    return f"<h2>Curves</h2>{picture('curves of all runs', png)}" if png else ""


def _listed(classes: Sequence[str]) -> str:
    return f"{', '.join(classes[:6])}{', ...' if len(classes) > 6 else ''} ({len(classes)})"
