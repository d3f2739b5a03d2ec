"""A faster equal of a model: BatchNorm folded into the convolutions before it, in channels-last memory."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

EXACT = 1e-9  # what a faster equal may differ by in float64, as a share of the largest output


def faster(model: nn.Module, example: Tensor, **inputs: Tensor) -> nn.Module:
    """A copy of `model` in eval mode, BatchNorm folded into the convolutions before it, in channels-last memory.

    Where a norm follows a convolution is found by running `example`, with `inputs` beside it, not by names. Folding and
    its check are done in float64, where a right one is equal to 1e-12 and a wrong one is not; should they differ by
    more than `EXACT` of the largest output, or the net refuse, an unfolded copy is given. What is left is the rounding
    of float32.
    """
    plain = copy.deepcopy(model).eval()
    dtypes = {p.dtype for p in plain.parameters()}
    folded = None
    if len(dtypes) == 1:
        try:
            exact = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
            with torch.no_grad():
                folded = _folded(copy.deepcopy(plain).double(), example.double(), exact)
        except Exception:  # positions computed in float32 that meet weights in float64, norms without statistics, ...
            folded = None
    return (folded.to(dtypes.pop()) if folded else plain).to(memory_format=torch.channels_last)


def _folded(model: nn.Module, example: Tensor, inputs: dict[str, Tensor]) -> nn.Module | None:
    """The model, each BatchNorm folded whose input is, as an object, a plain convolution's output; None if wrong."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # by id; the tensors are kept so that no id is used again
    pairs: dict[nn.BatchNorm2d, nn.Module] = {}

    def convolved(conv: nn.Module, args: Any, out: Tensor) -> None:
        made[id(out)] = (conv, out)

    def normed(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        if id(args[0]) in made and isinstance(norm, nn.BatchNorm2d):
            pairs[norm] = made[id(args[0])][0]

    # timm's Conv2dSame pads, then convolves; its standardised convolutions change their weights and cannot be folded
    plain = ("Conv2d", "Conv2dSame")
    hooks = [m.register_forward_hook(convolved) for m in model.modules() if type(m).__name__ in plain]
    hooks += [m.register_forward_pre_hook(normed) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    expected = model(example, **inputs)
    made.clear()
    for hook in hooks:
        hook.remove()
    for norm, conv in pairs.items():
        fused = fuse_conv_bn_eval(conv, norm)  # type: ignore[type-var]
        _replace(model, conv, fused)
        _replace(model, norm, getattr(norm, "act", nn.Identity()))  # timm's norms carry their activation
    return model if _equal(expected, model(example, **inputs)) else None


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)


def _equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    tensors = [(a[key], b[key]) for key in a if isinstance(a[key], Tensor)]
    return all((x - y).abs().max() <= EXACT * x.abs().max() for x, y in tensors)
