"""A model through torch.compile; where that fails, a sentence instead of a slower training that nobody asked for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.errors import UserError
from zoo.training.surroundings import one_line


def compiled(model: nn.Module) -> Callable[..., Any]:
    """`model` as a compiled function, with its weights and its mode; the model itself stays as it is.

    Compiled when it is first called, and again for images of another size, from the second on for any size.
    Raises UserError where torch cannot compile it, as without a C++ compiler on a CPU.
    """
    from torch._dynamo.exc import TorchDynamoException

    function = torch.compile(model.forward)

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TorchDynamoException as error:
            why = one_line(error)[:300]
            raise UserError(f"torch.compile cannot compile this model here ({why}); take --compile false.") from error

    return call
