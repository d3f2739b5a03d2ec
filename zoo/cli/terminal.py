"""Tables and progress: rich on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

EVERY = 10.0  # seconds between two plain lines


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, piped_header: bool = False) -> None:
    """Rows in columns; the header only where a person looks on, so that a pipe gets the names alone.

    piped_header: also in a pipe, where columns are figures that mean nothing without it.
    """
    if sys.stdout.isatty() and len(header) > 1:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*header, box=None, header_style="bold", padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(*map(Text, row))  # no markup: [480, 640] is no tag
        Console().print(table)
        return
    rows = [header, *rows] if piped_header else rows
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(header))]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items as they come, with progress on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as bar

        yield from bar(items, description=what, total=total, console=Console(stderr=True), transient=True)
        return
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            print(f"{what} {done}/{total}", file=sys.stderr, flush=True)
        yield item
