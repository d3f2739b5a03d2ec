"""report.html: one file that shows a run to a person, on a phone too; built from what lies in the run's folder.

It is written anew whenever the folder has something new to tell, so nothing in it is kept anywhere else.
"""

import base64
import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from zoo.files import aside

Cells = Sequence[Any]

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff; max-width: 46rem;
       margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; } .quiet { color: #6b7280; font-size: .9rem; }
.notice { background: #fef3c7; padding: .5rem .75rem; border-radius: .5rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .5rem; margin: .75rem 0; }
.figures div { background: #f3f4f6; border-radius: .5rem; padding: .5rem .75rem; }
.figures b { display: block; font-size: 1.4rem; line-height: 1.3; } .figures span { color: #4b5563; font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .95rem; }
th, td { text-align: left; padding: .2rem 1.2rem .2rem 0; border-bottom: 1px solid #e5e7eb; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; height: .6rem; background: #1f77b4; border-radius: .2rem; }
.chip { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; border: 1px solid #9ca3af;
        margin-right: .5rem; vertical-align: -.05rem; }
img { width: 100%; height: auto; display: block; }
pre { background: #f3f4f6; border-radius: .5rem; padding: .75rem; font-size: .82rem; white-space: pre-wrap; }
summary { cursor: pointer; }
"""


def write_page(folder: str | Path) -> Path:
    """Write report.html into a run's folder from the files there; what is missing is left out. Returns its path.

    run.json: what was trained (see `zoo.training.run`); test.json: {split: {"images": n, metric: value, ...}}, or
    {split: {"notice": sentence}} where it could not be measured;
    metrics.csv, timings.csv, recipe.yaml, curves.png and samples.png as the run writes them.
    """
    folder = Path(folder)
    run, tests = _json(folder / "run.json"), _json(folder / "test.json")
    sections = [
        _head(run),
        *(_figures(split, found) for split, found in tests.items()),
        _classes(tests, run),
        _picture(
            "Samples", folder / "samples.png",
            f"At even distances through the {run.get('samples', 'test')} split, none chosen; each with its own IoU.",
        ),
        _picture("Curves", folder / "curves.png", ""),
        _epochs(read_table(folder / "metrics.csv"), read_table(folder / "timings.csv"), run),
        _commands(run),
        _details("Recipe", _text(folder / "recipe.yaml")),
        _details("Environment", "\n".join(f"{key}: {value}" for key, value in run.get("environment", {}).items())),
    ]  # fmt: skip
    title = escape(run.get("title", folder.name))
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n<body>\n'
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )
    with aside(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "report.html"


def read_table(path: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv or timings.csv as numbers, without their empty cells; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]


def _head(run: Mapping[str, Any]) -> str:
    notice = f'<p class="notice">{escape(run["notice"])}</p>' if run.get("notice") else ""
    told = "".join(f"<p>{escape(sentence)}</p>" for sentence in run.get("told", []))
    return f"<h1>{escape(run.get('title', 'A run'))}</h1>{notice}{told}"


def _figures(split: str, found: Mapping[str, Any]) -> str:
    """A tile for each overall metric of a split."""
    if "notice" in found:
        return f'<p class="notice">{escape(found["notice"])}</p>'
    overall = {k: v for k, v in found.items() if k != "images" and "/" not in k}
    tiles = "".join(f"<div><b>{_number(v)}</b><span>{escape(_words(k))}</span></div>" for k, v in overall.items())
    n = found.get("images", 0)
    heading = f"Measured on the {escape(split)} split"
    note = f"n = {n} image{'s' * (n != 1)} at their original sizes, against their original masks."
    if split == "val":
        note += " The kept epoch was chosen on this split, so these figures are a little too good."
    return f'<h2>{heading}</h2><div class="figures">{tiles}</div><p class="quiet">{note}</p>'


def _classes(tests: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]) -> str:
    """A row for each class, a column for each split."""
    names = list(dict.fromkeys(k.partition("/")[2] for found in tests.values() for k in found if k.startswith("iou/")))
    if not names:
        return ""
    colors = dict(zip(run.get("class_names", []), run.get("class_colors", []), strict=False))
    rows = []
    for name in names:
        color = colors.get(name)
        chip = f'<span class="chip" style="background:rgb({",".join(map(str, color))})"></span>' if color else ""
        cells = []
        for found in tests.values():
            value = found.get(f"iou/{name}")
            bar = f'<span class="bar" style="width:{5 * value:.2f}rem"></span>' if len(tests) == 1 and value else ""
            cells.append(f'<td class="number">{_number(value)}</td>' + (f"<td>{bar}</td>" if len(tests) == 1 else ""))
        rows.append(f"<tr><td>{chip}{escape(name)}</td>{''.join(cells)}</tr>")
    heads = "".join(f'<th class="number">{escape(s)}</th>' for s in tests) + ("<th></th>" if len(tests) == 1 else "")
    note = '<p class="quiet">A class that is neither in the truth nor predicted has no IoU and is not in the mean.</p>'
    table = f"<table><tr><th>class</th>{heads}</tr>{''.join(rows)}</table>"
    return f'<h2>IoU by class</h2><div class="wide">{table}</div>{note}'


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
        rows.append([epoch, _number(row.get("train/loss")), _number(row.get(monitor)), speed, waiting])
    return f"<details><summary>All {len(rows)} epochs</summary>{_table(heads, rows)}</details>"


def _commands(run: Mapping[str, Any]) -> str:
    lines = [f"# {what}\n{command}" for what, command in run.get("commands", {}).items()]
    return f"<h2>Do it yourself</h2><pre>{escape(chr(10).join(lines))}</pre>" if lines else ""


def _picture(title: str, path: Path, note: str) -> str:
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    below = f'<p class="quiet">{escape(note)}</p>' if note else ""
    return f'<h2>{title}</h2><img alt="{title.lower()}" src="data:image/png;base64,{data}">{below}'


def _details(title: str, text: str) -> str:
    return f"<h2>{title}</h2><pre>{escape(text.rstrip())}</pre>" if text else ""


def _table(heads: Cells, rows: Iterable[Cells]) -> str:
    top = "".join(f'<th class="number">{escape(str(cell))}</th>' for cell in heads)
    body = "".join("<tr>" + "".join(f'<td class="number">{escape(str(c))}</td>' for c in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"


def _words(name: str) -> str:
    return {"mean_iou": "mean IoU", "iou": "IoU", "dice": "Dice"}.get(name, name.replace("_", " "))


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
