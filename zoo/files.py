"""Files written whole: aside first, then renamed, so that nobody ever reads half of one; endings; the user's cache."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = (".onnx", ".pt2")  # endings of what `zoo export` writes


def is_program(path: str | Path) -> bool:
    """Whether a path has the ending of an exported program, in capitals too."""
    return str(path).lower().endswith(PROGRAMS)


@contextmanager
def aside(path: str | Path) -> Iterator[Path]:
    """A hidden path beside `path`, with its suffix, to write to: renamed to `path` at the end.

    Where writing fails, what was written is removed and an older file stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """visionzoo's folder under $XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visionzoo"
