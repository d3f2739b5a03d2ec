"""A progress bar on a terminal, nothing elsewhere."""

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def tracked(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items, with a bar on stderr while they are worked on, gone afterwards; no bar where stderr is no terminal."""
    return track(
        items, what, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(), total=len(items)
    )
