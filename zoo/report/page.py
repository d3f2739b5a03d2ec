"""report.html: one file that shows a run to a person, on a phone too; built from what lies in the run's folder.

It is written anew whenever the folder has something new to tell, so nothing in it is kept anywhere else.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from zoo.files import aside
from zoo.metrics.bootstrap import FEW, RESAMPLES, SEED, Interval, intervals
from zoo.metrics.counts import TABLE, Counts, read_counts
from zoo.report.charts import reliability
from zoo.report.html import bounds, chip, number, page, picture, quiet, table, words

DETAILS = "test_details.json"
CONFUSED = 30  # classes, up to which a confusion matrix is shown
MANY = 12  # classes, above which it has small cells and no decimals
KINDS = ("iou", "dice", "precision", "recall")


def write_page(folder: str | Path) -> Path:
    """Write report.html into a run's folder from the files there; what is missing is left out. Returns its path.

    run.json: what was trained (see `zoo.training.run`); test.json: {split: {"images": n, metric: value, ...}}, or
    {split: {"notice": sentence}} where it could not be measured; test_images.csv, test_details.json and
    worst_<split>.png: what `zoo.training.tested` writes, where the figures' intervals come from;
    metrics.csv, timings.csv, recipe.yaml, curves.png and samples.png as the run writes them. With `overfit` in run.json
    train and val are the images trained on, at its `size`.
    """
    folder = Path(folder)
    run, tests = read_json(folder / "run.json"), read_json(folder / "test.json")
    details = read_json(folder / DETAILS)
    shown = _named(run.get("samples", "test"), run)
    counts = read_counts(folder / TABLE, kinds(details))
    found = {split: intervals(counts[split]) for split in tests if split in counts}
    sections = [
        _head(run),
        *(_figures(split, scores, found.get(split, {}), run) for split, scores in tests.items()),
        _iou_by_class(tests, run) if len(tests) > 1 or not found else "",
        *(_split(split, folder, counts[split], some, details[split], run, len(tests)) for split, some in found.items()),
        _picture(
            "Samples", folder / "samples.png",
            f"At even distances through the {shown}, none chosen; each with its own IoU.",
        ),
        _picture("Curves", folder / "curves.png", ""),
        _epochs(read_table(folder / "metrics.csv"), read_table(folder / "timings.csv"), run),
        _commands(run),
        _text("Recipe", folder / "recipe.yaml"),
        _environment(run),
    ]  # fmt: skip
    with aside(folder / "report.html") as temporary:
        text = page(run.get("title", folder.name), sections)
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    return folder / "report.html"


def read_table(path: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv or timings.csv as numbers, without their empty cells; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]


def read_json(path: Path) -> dict[str, Any]:
    """What a run's JSON file holds; nothing where there is none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def kinds(details: Mapping[str, Any]) -> dict[str, tuple[str, Sequence[str]]]:
    """Of each split in test_details.json the task's mode and the names of the classes."""
    return {split: (own["mode"], own["classes"]) for split, own in details.items()}


def worst_path(folder: Path, split: str) -> Path:
    """Where the picture of a split's worst images lies."""
    return folder / f"worst_{split.replace('/', '_')}.png"


def _head(run: Mapping[str, Any]) -> str:
    notice = f'<p class="notice">{escape(run["notice"])}</p>' if run.get("notice") else ""
    told = "".join(f"<p>{escape(sentence)}</p>" for sentence in run.get("told", []))
    return f"<h1>{escape(run.get('title', 'A run'))}</h1>{notice}{told}"


def _figures(split: str, scores: Mapping[str, Any], found: Mapping[str, Interval], run: Mapping[str, Any]) -> str:
    """A tile for each overall metric of a split, with its interval where there is one."""
    if "notice" in scores:
        return f'<p class="notice">{escape(scores["notice"])}</p>'
    overall = {k: v for k, v in scores.items() if k != "images" and "/" not in k}
    tiles = ""
    for name, value in overall.items():
        interval = bounds(found[name]) if name in found else ""
        below = f"<br><span>{interval}</span>" if interval else ""
        tiles += f"<div><b>{number(value)}</b><span>{escape(words(name))}</span>{below}</div>"
    n = scores.get("images", 0)
    note = f"n = {n} image{'s' * (n != 1)} at their original sizes, against their original masks."
    if _is_overfit(split, run):
        size = f"resized to {'x'.join(map(str, run['size']))}" if run.get("size") else "at their original sizes"
        note = (
            f"n = {n} image{'s' * (n != 1)}, the very ones trained on, {size} with their masks. So these figures tell"
        )
        note += " whether the model can learn at all, and nothing of other images."
    elif split == "val" and run.get("monitor"):
        note += " The kept epoch was chosen on this split, so these figures are a little too good."
    if any(name in found for name in overall):
        note += f" Below each figure its 95 % interval: {how(n)}"
    title = f"{'Overfit: measured' if _is_overfit(split, run) else 'Measured'} on the {escape(_named(split, run))}"
    return f'<h2>{title}</h2><div class="figures">{tiles}</div>{quiet(note)}'


def _is_overfit(split: str, run: Mapping[str, Any]) -> bool:
    return bool(run.get("overfit")) and split in ("train", "val")


def _named(split: str, run: Mapping[str, Any]) -> str:
    return "training images" if _is_overfit(split, run) else f"{split} split"


def how(n: int) -> str:
    """How intervals were found, for readers who know, and what they leave out, for those who don't."""
    few = " With so few images they are too narrow." if n < FEW else ""
    return (
        f"the middle of {RESAMPLES} resamples of the {n} images (percentile bootstrap, seed {SEED}). It tells how much"
        f" depends on which images were tested, not on the chance of another training.{few}"
    )


def _iou_by_class(tests: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]) -> str:
    """A row for each class, a column for each split."""
    names = list(dict.fromkeys(k.partition("/")[2] for found in tests.values() for k in found if k.startswith("iou/")))
    if not names:
        return ""
    colors = dict(zip(run.get("class_names", []), run.get("class_colors", []), strict=False))
    rows = ""
    for name in names:
        cells = "".join(f'<td class="number">{number(found.get(f"iou/{name}"))}</td>' for found in tests.values())
        rows += f"<tr><td>{chip(colors.get(name))}{escape(name)}</td>{cells}</tr>"
    heads = "".join(f'<th class="number">{escape(split)}</th>' for split in tests)
    note = quiet("A class that is neither in the truth nor predicted has no IoU and is not in the mean.")
    return f'<h2>IoU by class</h2><div class="wide"><table><tr><th>class</th>{heads}</tr>{rows}</table></div>{note}'


def _split(
    split: str,
    folder: Path,
    counts: Counts,
    found: Mapping[str, Interval],
    details: Mapping[str, Any],
    run: Mapping[str, Any],
    splits: int,
) -> str:
    """Classes, confusion, calibration and the worst images of a split; folded up where there are several splits."""
    parts = [
        _classes(counts, found, run),
        _confusion(details),
        _calibration(details),
        _worst(split, folder, counts, run),
    ]
    inner = "".join(part for part in parts if part)
    if splits == 1:
        return inner
    return f"<details><summary>More of the {escape(split)} split: classes, worst images, ...</summary>{inner}</details>"


def _classes(counts: Counts, found: Mapping[str, Interval], run: Mapping[str, Any]) -> str:
    """A row for each class: each figure over its interval, and the share of the pixels that are of this class."""
    colors = dict(zip(run.get("class_names", []), run.get("class_colors", []), strict=False))
    shares = counts.truth.sum(axis=0) / max(1, counts.pixels.sum())
    rows = ""
    for name, share in zip(counts.classes, shares, strict=True):
        cells = ""
        for kind in KINDS:
            one = found[f"{kind}/{name}"]
            cells += f'<td class="number">{number(one.value)}<br><small>{bounds(one)}</small></td>'
        pixels = f"<small>{100 * share:.3g} % of pixels</small>"
        rows += f"<tr><td>{chip(colors.get(name))}{escape(name)}<br>{pixels}</td>{cells}</tr>"
    heads = "".join(f'<th class="number">{words(kind)}</th>' for kind in KINDS)
    note = quiet(
        "Over all pixels of all images; below each figure its 95 % interval. Precision: of what is predicted as this"
        " class, how much is right. Recall: of what is this class, how much is found. A class that is neither in the"
        " truth nor predicted has no IoU and is not in the mean."
    )
    top = f"<tr><th>class</th>{heads}</tr>"
    return f'<h2>Classes</h2><div class="wide"><table class="close">{top}{rows}</table></div>{note}'


def _confusion(details: Mapping[str, Any]) -> str:
    """The confusion matrix in percent of each true class, darker for more."""
    matrix, classes = details.get("confusion"), details["classes"]
    if not matrix or len(classes) > CONFUSED:
        return ""
    digits, kind = (0, "confusion many") if len(classes) > MANY else (1, "confusion")
    heads = "".join(f'<th title="{escape(name)}">{i}</th>' for i, name in enumerate(classes))
    rows = ""
    for i, (name, counts) in enumerate(zip(classes, matrix, strict=True)):
        total, cells = sum(counts), ""
        for k, count in enumerate(counts):
            share = count / total if total else 0.0
            shade = (31, 119, 180) if i == k else (209, 73, 91)
            ink = "#fff" if share > 0.6 else "#1f2937"
            style = f"background:rgba({shade[0]},{shade[1]},{shade[2]},{share:.3f});color:{ink}"
            text = "-" if not total else f"{100 * share:.{digits}f}" if count else ""
            cells += f'<td style="{style}" title="{escape(name)} as {escape(classes[k])}">{text}</td>'
        rows += f"<tr><th>{i} {escape(name)}</th>{cells}</tr>"
    note = quiet("Rows: what is true; columns, by the same numbers: what is predicted, in percent of the row's pixels.")
    return (
        f'<h2>Confusion</h2><div class="wide"><table class="{kind}"><tr><th>true \\ predicted</th>{heads}</tr>{rows}'
        f"</table></div>{note}"
    )


def _calibration(details: Mapping[str, Any]) -> str:
    bins = details.get("calibration")
    if not bins or bins["ece"] is None:
        return ""
    winner = details["mode"] == "multiclass"
    axes = ("confidence in the answer", "share that is right")
    what = "Confidence is the probability of the class that is answered"
    if not winner:
        axes = ("predicted probability", "share that is of the class")
        what = (
            "Probability is that of the foreground" if details["mode"] == "binary" else "Each pixel counts once a class"
        )
    note = quiet(
        f"Expected calibration error {bins['ece']:.4f}, over {sum(bins['pixels']):,} pixels in {len(bins['pixels'])}"
        f" bins. {what}; bars below the dashed line: less often so than said."
    )
    return f"<h2>Calibration</h2>{picture('reliability diagram', reliability(bins, *axes), part=True)}{note}"


def _worst(split: str, folder: Path, counts: Counts, run: Mapping[str, Any]) -> str:
    path = worst_path(folder, split)
    if not path.is_file():
        return ""
    name, scores = counts.scores()
    none = int((scores != scores).sum())
    left_out = (
        f" {none} image{'s' * (none != 1)} without any foreground, true or predicted, have no score." if none else ""
    )
    images = "training images" if _is_overfit(split, run) else f"{escape(split)} images"
    note = f"The {images} with the lowest {words(name)}, the lowest first.{left_out}"
    note += f" {TABLE} has every image."
    return f"<h2>Worst images</h2>{picture('worst images', path.read_bytes())}{quiet(note)}"


def _epochs(metrics: list[dict[str, float]], timings: list[dict[str, float]], run: Mapping[str, Any]) -> str:
    if not metrics:
        return ""
    kept, monitor = run.get("kept_epoch"), f"val/{run.get('monitor') or 'mean_iou'}"
    heads = ["epoch", "train loss", monitor.partition("/")[2].replace("_", " "), "images/s", "waiting for data"]
    rows = []
    for i, row in enumerate(metrics):
        timing = timings[i] if i < len(timings) else {}
        epoch = f"{row['epoch']:.0f}{' (kept)' if row['epoch'] == kept else ''}"
        waiting = f"{100 * timing['waiting']:.0f} %" if "waiting" in timing else ""
        speed = f"{timing['images_per_second']:.3g}" if "images_per_second" in timing else ""
        rows.append([epoch, number(row.get("train/loss")), number(row.get(monitor)), speed, waiting])
    return f"<details><summary>Every epoch in numbers</summary>{table(heads, rows)}</details>"


def _commands(run: Mapping[str, Any]) -> str:
    lines = [f"# {what}\n{command}" for what, command in run.get("commands", {}).items()]
    return f"<h2>Do it yourself</h2><pre>{escape(chr(10).join(lines))}</pre>" if lines else ""


def _picture(title: str, path: Path, note: str) -> str:
    if not path.is_file():
        return ""
    return f"<h2>{title}</h2>{picture(title.lower(), path.read_bytes())}{quiet(note)}"


def _text(title: str, path: Path) -> str:
    if not path.is_file():
        return ""
    return f"<h2>{title}</h2><pre>{escape(path.read_text(encoding='utf-8').rstrip())}</pre>"


def _environment(run: Mapping[str, Any]) -> str:
    lines = [f"{key}: {value}" for key, value in run.get("environment", {}).items()]
    return f"<h2>Environment</h2><pre>{escape(chr(10).join(lines))}</pre>" if lines else ""
