"""The optimiser, by name and with a rate for each layer, and the learning rate over time."""

import math
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from zoo.errors import UserError, nearest
from zoo.training.keys import Optimizer, Scheduler

SCHEDULES = ("constant", "cosine", "poly", "step")


def create_optimizer(model: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    """The optimiser of torch.optim with that name, in any case, over the model's trainable parameters.

    Raises UserError for an unknown name, an option that it doesn't take, and a model without trainable parameters.
    """
    classes = {
        name.lower(): found
        for name, found in vars(torch.optim).items()
        if isinstance(found, type) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer
    }
    name = optimizer.name.lower()
    if name not in classes:
        raise UserError(
            f"There is no optimiser {optimizer.name!r} in torch.optim{nearest(name, classes) or '.'}"
            f" It has: {', '.join(sorted(classes))}."
        )
    groups = parameter_groups(model, optimizer)
    if not groups:
        raise UserError("The model has no trainable parameters; unfreeze its encoder or its decoder.")
    try:
        return classes[name](groups, **optimizer.options())
    except (TypeError, ValueError) as error:
        options = ", ".join(f"{key} {value}" for key, value in optimizer.options().items())
        raise UserError(f"The optimiser {optimizer.name!r} does not take {options}: {error}.") from None


def parameter_groups(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """The trainable parameters in groups of equal rate and weight decay, as torch.optim takes them; the head's first.

    The backbone's own weights (`encoder.net`, or a registered encoder as a whole) have `encoder_lr`, all others,
    convolutions and attention that we add to a backbone among them, have `lr`. With `layer_decay` the backbone's last
    layer has `encoder_lr` and each layer before it `layer_decay` times the next one's, in layers as the net's
    `group_matcher` counts them. Without `decay_norms` there is no weight decay on what has one dimension at most, on
    biases, and on what the net's `no_weight_decay` names.
    Raises UserError where layers are asked for of a net that has no `group_matcher`.
    Source: BEiT (Bao et al. 2021, arXiv 2106.08254), appendix; layers and what is spared as in timm's
    `optim.param_groups_layer_decay`, which gives the classifier the undecayed rate, where here the last layer has it.
    """
    net = backbone(model)
    own = {id(p): name for name, p in net.named_parameters()} if isinstance(net, nn.Module) else {}
    last, layers = _layers(net) if optimizer.layer_decay else (0, {})
    spared = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, p in sorted(trained, key=lambda pair: id(pair[1]) in own):  # what is not the backbone's first
        rate, inner = optimizer.lr, own.get(id(p))
        if inner is not None:
            rate = (optimizer.encoder_lr or optimizer.lr) * (optimizer.layer_decay or 1) ** (
                last - layers.get(inner, last)
            )
        bare = p.ndim <= 1 or name.endswith(".bias") or any(fnmatch(inner or "", pattern) for pattern in spared)
        decays = optimizer.decay_norms or not bare
        new = {"params": [], "lr": rate, **({} if decays else {"weight_decay": 0.0})}
        groups.setdefault((rate, decays), new)["params"].append(p)
    return list(groups.values())


def backbone(model: nn.Module) -> Any:
    """The module with the backbone's own weights alone; None where a model has no encoder."""
    encoder = getattr(model, "encoder", None)
    trunk = getattr(encoder, "trunk", encoder)  # the encoder itself, where attention is around it
    return getattr(trunk, "net", trunk)


def _layers(net: Any) -> tuple[int, dict[str, int]]:
    """(the last layer's number, the layer of each parameter by name), counted from the image."""
    from timm.models import group_parameters

    if not hasattr(net, "group_matcher"):
        raise UserError(
            f"optimizer.layer_decay needs an encoder whose layers are known, as timm's are; {type(net).__name__} has no"
            " `group_matcher`. Take --optimizer.layer_decay null, and --optimizer.encoder_lr for a rate of its own."
        )
    layers = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
    return max(layers.values(), default=0), layers


def create_schedule(scheduler: Scheduler, *, steps: float) -> tuple[Callable[[int], float], str]:
    """(share of the initial lr as a function of the count, what is counted: "step" or "epoch").

    steps: optimiser steps in the whole training, infinite where nobody knows, which only constant without a warm-up
    and step can take (else a UserError); the warm-up takes at most half of them. cosine and poly fall from 1 to
    `final` with every step; the step schedule is gamma ** (epoch // every), always from the initial lr. (PraNet's code
    multiplies the current one at every epoch from `every` on; within its 19 epochs that is the same.)
    """
    name, warmup = scheduler.name, min(scheduler.warmup, steps // 2) if scheduler.warmup else 0
    if name not in SCHEDULES:
        raise UserError(f"There is no scheduler {name!r}{nearest(name, SCHEDULES) or '.'}")
    if name == "step":
        if scheduler.warmup:
            raise UserError(f"scheduler.warmup is {scheduler.warmup}, but the step schedule has none; set it to 0.")
        return lambda epoch: float(scheduler.gamma ** (epoch // scheduler.every)), "epoch"
    if math.isinf(steps) and (name != "constant" or scheduler.warmup):
        what = f"scheduler.warmup is {scheduler.warmup}" if name == "constant" else f"scheduler.name is {name}"
        raise UserError(
            f"{what}, which needs the number of steps, but the trainer bounds neither epochs nor steps; set"
            " trainer.max_epochs or trainer.max_steps, or --scheduler.name constant --scheduler.warmup 0."
        )

    def factor(step: int) -> float:
        if step < warmup:
            return float((step + 1) / (warmup + 1))
        if name == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        fall = (1 + math.cos(math.pi * progress)) / 2 if name == "cosine" else (1 - progress) ** scheduler.power
        return float(scheduler.final + (1 - scheduler.final) * fall)

    return factor, "step"
