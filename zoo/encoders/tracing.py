"""What keeps the batch, height and width of images open while a net is traced for export."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.fx.experimental._config as symbols


@contextmanager
def open_sizes() -> Iterator[None]:
    """While this is entered, torch decides no branch because a size happens to be 1 or more in the sample.

    So a program holds for a single image and for sides of one pixel too. timm's "same" padding asks which of two
    sizes is larger; here it is put as arithmetic.
    """
    import timm.layers.padding as padding

    with ExitStack() as stack:
        if hasattr(symbols, "backed_size_oblivious"):
            stack.enter_context(symbols.patch(backed_size_oblivious=True))  # type: ignore[attr-defined]
        stack.enter_context(patch.object(padding, "get_same_padding", same_padding))
        yield


def perhaps(condition: Any) -> bool:
    """Whether a condition on sizes may hold; one that open sizes leave open does, and sets no bound on them."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_true  # half a second, and only tracing needs it

    return bool(guard_or_true(condition))


def same_padding(length: Any, kernel: int, stride: int, dilation: int) -> Any:
    """What timm pads a side by in all, so that it has ceil(length / stride) cells; open sizes stay open."""
    reach = (kernel - 1) * dilation + 1
    missing = ((length + stride - 1) // stride - 1) * stride + reach - length
    return missing if reach >= stride else torch.sym_max(missing, 0)  # a kernel as long as the stride is never short
