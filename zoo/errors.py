"""The exceptions of a user's mistake and of being ended from outside, and the nearest right name for a wrong one."""

import difflib
from collections.abc import Iterable


class Terminated(KeyboardInterrupt):
    """SIGTERM: whoever runs the machine wants it back; the command line exits with 143."""


class UserError(ValueError):
    """A user's mistake, told in one sentence: what is wrong, its value, and the way out.

    The command line prints the sentence alone and exits with code 2; in Python it is a ValueError.
    """


class ImageError(UserError):
    """A mistake about one image, found while it is computed: the others can still be answered."""


def nearest(name: object, names: Iterable[str], *, lead: str = "did you mean") -> str:
    """The closest of `names` as the end of a sentence (" - did you mean 'unet'?"), or "" where none is close."""
    close = difflib.get_close_matches(str(name).lower(), [str(n) for n in names], n=3, cutoff=0.5)
    return f" - {lead} {' or '.join(map(repr, close))}?" if close else ""
