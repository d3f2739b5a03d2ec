"""A frozen encoder: no gradients for its weights, and eval mode whatever the model's mode; all of it, or its start.

Freezing renames nothing: the state_dict is the unfrozen encoder's. Nor does it switch autograd off, which has nothing
to record, and keeps no activations, where neither weights nor input want gradients. So what stands before a frozen net
and is to be trained (`adapt`, or an image that asks) still gets its gradient through it.
"""

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.encoders import probe, timm
from zoo.encoders.pyramid import Pyramid
from zoo.errors import UserError

STRIDES = (4, 8, 16, 32)  # stage n is what leads to the features of the n-th
SIDE = 64  # of the image on which stages are looked for


def freeze(encoder: nn.Module, name: str, frozen: Any) -> None:
    """Freeze all of an encoder (True), its first stages (a number), or nothing (False, 0); name: for what is told.

    Stage n of 4 is all that the features of stride 4, 8, 16, 32 are computed with: the stem belongs to the first, what
    lies deeper than stride 32 to the last; of a plain ViT, and of any net of one stride, the stages are the four
    quarters of its blocks. 4 is the same as True. A timm net keeps its names for it under every decoder, and the
    convolutions that we add to it (`stems`, `adapt`) are trained. A registered encoder is frozen by the levels that
    the decoder asks it for, with all that they are computed with.
    Raises UserError for another value, and for stages that a registered encoder does not show.
    """
    if not isinstance(frozen, bool | int) or not 0 <= frozen <= len(STRIDES):
        raise UserError(
            f"frozen is {frozen!r} for the encoder {name!r}; give true for all of it, or how many of its"
            f" {len(STRIDES)} stages are frozen, counted from the stem."
        )
    if not frozen:
        return
    net: nn.Module = encoder.net if isinstance(encoder, Pyramid) else encoder
    parameters, modules = [*net.parameters()], [*net.modules()]
    if frozen is not True and frozen < len(STRIDES):
        parameters, modules = _first_stages(encoder, net, name, frozen)
    for parameter in parameters:
        parameter.requires_grad_(False)
    # of the instance, so that it holds for any class; a partial is copied and pickled along with what it is about
    encoder.train = partial(_train, encoder, modules)  # type: ignore[method-assign]
    encoder.train(encoder.training)


def _train(encoder: nn.Module, asleep: Iterable[nn.Module], mode: bool = True) -> nn.Module:
    """`encoder.train(mode)` that leaves the frozen modules in eval mode."""
    type(encoder).train(encoder, mode)
    for module in asleep:
        module.training = False
    return encoder


def _first_stages(
    encoder: nn.Module, net: nn.Module, name: str, count: int
) -> tuple[list[nn.Parameter], list[nn.Module]]:
    """The parameters that the first stages' features depend on, and the modules that are run for these alone.

    Found by running a twin without memory. Modules without parameters (dropout, stochastic depth) say nothing of where
    they belong but by when they run: before the first layer that is trained.
    """
    with probe.quietly_on("meta"), torch.enable_grad():
        twin = _twin(encoder).train()  # in eval mode some nets keep weights aside, out of autograd's sight (levit)
        body: nn.Module = twin.net if isinstance(twin, Pyramid) else twin
        ran: list[nn.Module] = []
        for module in body.modules():
            module.register_forward_pre_hook(lambda module, _: ran.append(module))
        try:
            maps = _features(twin, count)
        except Exception as error:  # somebody else's code
            raise UserError(
                f"The stages of the encoder {name!r} cannot be told apart ({probe.first_line(error)});"
                " frozen: true freezes all of it."
            ) from error
        weights = {key: p for key, p in body.named_parameters() if p.requires_grad}
        maps = [m for m in maps if m.requires_grad]
        if not maps:
            raise UserError(
                f"The encoder {name!r} has no weights up to stride {STRIDES[count - 1]} under this decoder; freeze"
                " more stages, or true for all of it."
            )
        gradients = torch.autograd.grad(
            maps, list(weights.values()), [torch.ones_like(m) for m in maps], allow_unused=True
        )
    used = {key for key, gradient in zip(weights, gradients, strict=True) if gradient is not None}
    trained = {p for key, p in weights.items() if key not in used}
    frozen = {weights[key] for key in used}
    early = set()
    for module in ran:
        if not trained.isdisjoint(module.parameters()):
            if not any(True for _ in module.children()):
                break
        else:
            early.add(module)
    asleep = [
        key
        for key, module in body.named_modules()
        if module in early or (not frozen.isdisjoint(module.parameters()) and trained.isdisjoint(module.parameters()))
    ]
    # with all below them: a part of a frozen block that did not run has no other place
    modules = dict.fromkeys(part for key in asleep for part in net.get_submodule(key).modules())
    return [net.get_parameter(key) for key in sorted(used)], list(modules)


def _features(twin: nn.Module, count: int) -> list[Tensor]:
    """The maps of the first stages: a timm net's at its own taps, a registered encoder's among its levels."""
    if not isinstance(twin, Pyramid):
        channels = len(twin.mean)  # type: ignore[arg-type]
        maps = twin(torch.empty(2, channels, SIDE, SIDE))
        strides: Iterable[int] = twin.strides  # type: ignore[assignment]
        return [m for m, stride in zip(maps, strides, strict=True) if stride <= STRIDES[count - 1]]
    plan = twin.plan
    whole = plan if plan.strides == STRIDES else timm.plan(plan.name, STRIDES, plan.net_channels, **plan.arguments)
    taps = sorted({whole.taps[i] for level in whole.levels[:count] for i in level})
    deepest = max(plan.taps)  # the net ends there: a decoder of few strides may not have asked for all stages
    taps = sorted({min(tap, deepest) for tap in taps})
    return probe.tapped(twin.net, twin.enlarge(torch.empty(2, plan.net_channels, SIDE, SIDE)), taps)


def _twin(module: nn.Module) -> Any:
    """A copy on the meta device, made without copying the weights first."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    memo |= {id(b): b.detach().to("meta") for b in module.buffers()}
    return copy.deepcopy(module, memo)
