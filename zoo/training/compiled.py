"""A model through torch.compile; where that fails, a sentence instead of a slower training that nobody asked for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.errors import UserError
from zoo.training.surroundings import one_line


def compiled(model: nn.Module) -> Callable[..., Any]:
    """`model` as a compiled function, with its weights and its mode; the model itself stays as it is.

    Compiled when it is first called, and again for every other size of a batch: with open sizes torch 2.15 fails on
    ViTs, whose position embeddings are resized. Raises UserError where torch cannot compile it, as without a C++
    compiler on a CPU, and at more sizes than torch keeps (8).
    """
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    torch.compiler.reset()  # what earlier models of this process have compiled would count as sizes of this one
    function = torch.compile(model.forward, dynamic=False)

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            with config.patch(fail_on_recompile_limit_hit=True):  # else it goes on uncompiled, at a warning
                return function(*args, **kwargs)
        except FailOnRecompileLimitHit:
            most = config.recompile_limit
            raise UserError(
                f"Batches come in more sizes than torch.compile keeps ({most}); set data.size, or take --compile false."
            ) from None
        except TorchDynamoException as error:
            why = one_line(error)[:300]
            raise UserError(f"torch.compile cannot compile this model here ({why}); take --compile false.") from error

    return call
