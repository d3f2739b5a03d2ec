"""The parts that pages are made of: one self-contained file, light, readable on a phone; no script, nothing fetched."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from zoo.metrics.bootstrap import Interval

Cells = Sequence[Any]

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff; max-width: 46rem;
       margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .5rem 0; } .quiet { color: #6b7280; font-size: .9rem; }
.notice { background: #fef3c7; padding: .5rem .75rem; border-radius: .5rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .5rem; margin: .75rem 0; }
.figures div { background: #f3f4f6; border-radius: .5rem; padding: .5rem .75rem; }
.figures b { display: block; font-size: 1.4rem; line-height: 1.3; } .figures span { color: #4b5563; font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .95rem; }
th, td { text-align: left; padding: .2rem 1.2rem .2rem 0; border-bottom: 1px solid #e5e7eb; white-space: nowrap; }
th { vertical-align: bottom; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td small { color: #6b7280; font-size: .78rem; }
.close td, .close th { padding-right: .6rem; }
td.text { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
.confusion td, .confusion th { padding: .25rem .4rem; border: 0; font-size: .8rem; text-align: center; }
.confusion th:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: #fff; }
.many td, .many th { padding: .1rem .15rem; font-size: .68rem; }
.bar { display: inline-block; height: .6rem; background: #1f77b4; border-radius: .2rem; }
.chip { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; border: 1px solid #9ca3af;
        margin-right: .5rem; vertical-align: -.05rem; }
img { width: 100%; height: auto; display: block; } img.part { max-width: 28rem; }
pre { background: #f3f4f6; border-radius: .5rem; padding: .75rem; font-size: .82rem; white-space: pre-wrap; }
summary { cursor: pointer; } details { margin: .75rem 0; }
"""


def page(title: str, sections: Iterable[str]) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n<body>\n'
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def picture(alt: str, png: bytes, *, part: bool = False) -> str:
    """An image inside the page; part: not over its whole width."""
    kind = ' class="part"' if part else ""
    return f'<img{kind} alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def table(heads: Cells, rows: Iterable[Cells]) -> str:
    """Numbers in columns; cells are text, not markup."""
    top = "".join(f'<th class="number">{escape(str(cell))}</th>' for cell in heads)
    body = "".join("<tr>" + "".join(f'<td class="number">{escape(str(c))}</td>' for c in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def quiet(text: str) -> str:
    return f'<p class="quiet">{escape(text)}</p>' if text else ""


def chip(color: Sequence[int] | None) -> str:
    """A small square of a class's colour."""
    return f'<span class="chip" style="background:rgb({",".join(map(str, color))})"></span>' if color else ""


def number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"


def bounds(found: Interval, *, sign: bool = False) -> str:
    """ "0.711–0.832", with a sign "-0.0120 to +0.0310"; nothing where there is no interval."""
    if found.low != found.low:
        return ""
    return f"{found.low:+.4f} to {found.high:+.4f}" if sign else f"{found.low:.3f}–{found.high:.3f}"


def words(name: str) -> str:
    """A metric's name as people write it."""
    kind, _, of = name.partition("/")
    plain = {"mean_iou": "mean IoU", "iou": "IoU", "dice": "Dice"}.get(kind, kind.replace("_", " "))
    return f"{plain} of {of}" if of else plain
