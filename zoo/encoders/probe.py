"""What an architecture of timm takes and gives, found by asking the net, not its name.

It is asked on the meta device, where a net runs in tenths of a second and without memory: which image sizes it takes,
where its maps come from, at which true strides, and which parameters they leave unused.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zoo.encoders.pyramid import ceil, evenly
from zoo.errors import UserError, nearest

T = TypeVar("T")
Size = tuple[int, int]
Shapes = dict[Size, list[Size]]  # image size -> the size of each tap's map

# 129 is odd at every halving and 192 even at every one: a map that is right there rounds up at each stage
FREE_SIZES: tuple[Size, Size] = ((129, 192), (250, 333))
MIN_SIDES = (8, 32, 64, 96, 128, 192, 256)  # tried in turn where a net does not run on its smallest image
RESERVED = ("in_chans", "num_classes", "pretrained", "pretrained_cfg", "features_only", "device", "dtype")
CHANNELS, OTHER_CHANNELS = 3, 5


@dataclass(frozen=True)
class Facts:
    """What a net was found to take and give, whichever strides a decoder will ask for; plain JSON data.

    arguments: what timm.create_model takes beside the name. any_channels: it takes images of other than 3 channels.
    multiple, size: as in `zoo.encoders.pyramid.Plan`. taps: indices for timm's `forward_intermediates`, in depth order;
    the rest is said for each: strides (true ones), channels, rounds_up (a map is ceil(H/stride) high for every H), and
    min_sides, the smallest side of an image where the net ends at this tap. quarters: of a net of one stride, the place
    in `taps` of its four evenly spaced blocks. unused: (place, places they feed, parameters) where the net that ends at
    the tap of a place has parameters that do not feed this tap.
    """

    arguments: dict[str, Any]
    any_channels: bool
    multiple: int
    size: Size | None
    taps: tuple[int, ...]
    strides: tuple[float, ...]
    channels: tuple[int, ...]
    rounds_up: tuple[bool, ...]
    min_sides: tuple[int, ...]
    quarters: tuple[int, ...]
    unused: tuple[tuple[int, tuple[int, ...], tuple[str, ...]], ...]


def find(name: str, arguments: Mapping[str, Any]) -> Facts:
    """The facts of timm's `name` built with these arguments; tenths of a second.

    Raises UserError for an unknown argument, and for a net that runs at none of the sizes tried.
    """
    try:
        return without_memory(lambda: ask(name, dict(arguments)))
    except UserError:
        raise
    except Exception as error:  # whatever timm or torch says about a net that does not run so
        given = f" with {dict(arguments)}" if arguments else ""
        raise UserError(f"timm's {name!r} does not run as an encoder{given}: {first_line(error)}") from error


def ask(name: str, arguments: dict[str, Any]) -> Facts:
    """The facts of a net; to be called on the meta device."""
    net, every = build(name, CHANNELS, arguments)
    # an entry without a module cannot be tapped (tresnet's first)
    reductions = {i: info["reduction"] for i, info in enumerate(net.feature_info) if info["module"]}  # type: ignore[arg-type]
    isotropic = len(reductions) > 1 and len(set(reductions.values())) == 1
    quarters = evenly(list(reductions)) if isotropic else []
    taps = sorted(set(quarters)) or list(reductions)
    declared = [reductions[tap] for tap in taps]
    multiple, size, shapes = sizes_taken(net, CHANNELS, taps, declared, every)
    strides = [measured(shapes, i, r, fixed=size is not None) for i, r in enumerate(declared)]
    smallest = min(shapes)

    prune(net, taps)
    channels, fed = feeding(net, CHANNELS, smallest, taps)
    min_sides: list[int] = []
    unused: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for place in reversed(range(len(taps))):
        kept = taps[: place + 1]
        prune(net, kept)
        deeper = min_sides[0] if min_sides else None
        if size or deeper == multiple:
            min_sides.insert(0, deeper or 1)
        else:
            min_sides.insert(0, smallest_side(net, CHANNELS, multiple, kept))
        for key, parameter in net.named_parameters():
            if parameter.requires_grad and key not in fed[place]:
                feeds = tuple(other for other in range(place) if key in fed[other])
                unused.setdefault((place, feeds), []).append(key)
    return Facts(
        arguments=every,
        any_channels=takes_channels(name, OTHER_CHANNELS, arguments, taps, smallest, shapes[smallest]),
        multiple=multiple,
        size=size,
        taps=tuple(taps),
        strides=tuple(strides),
        channels=channels,
        rounds_up=tuple(
            size is None
            and all(
                maps[i] == (ceil(height, round(stride)), ceil(width, round(stride)))
                for (height, width), maps in shapes.items()
            )
            for i, stride in enumerate(strides)
        ),
        min_sides=tuple(min_sides),
        quarters=tuple(taps.index(block) for block in quarters),
        unused=tuple((*where, tuple(keys)) for where, keys in unused.items()),
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
    size = own_size(net.pretrained_cfg["input_size"], arguments)  # type: ignore[index,arg-type]
    return 1, size, {size: map_sizes(net, channels, size, taps)}


def own_size(input_size: Sequence[int], arguments: Mapping[str, Any]) -> Size:
    """The (height, width) that a net of one size was built for; input_size: of its weights, channels first."""
    size = arguments.get("img_size") or input_size[-2:]
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


def feeding(net: nn.Module, channels: int, size: Size, taps: Sequence[int]) -> tuple[tuple[int, ...], list[set[str]]]:
    """For each tap its channels, and the names of the parameters that it depends on."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    net.train()  # in eval mode some nets keep biases aside, out of autograd's sight (levit)
    with torch.enable_grad():
        maps = tapped(net, torch.empty(2, channels, *size), taps)
    net.eval()
    return tuple(m.shape[1] for m in maps), [{names[leaf] for leaf in leaves(m) if leaf in names} for m in maps]


def leaves(result: Tensor) -> set[int]:
    """The ids of the tensors that autograd's graph of `result` begins with."""
    found, seen, rest = set(), set(), [result.grad_fn]
    while rest:
        node = rest.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        rest += [before for before, _ in node.next_functions]
    return found


def takes_channels(
    name: str, channels: int, arguments: dict[str, Any], taps: Sequence[int], size: Size, maps: list[Size]
) -> bool:
    """Whether a net of that many image channels can be built and gives the same maps."""
    try:
        net, _ = build(name, channels, arguments)
        return map_sizes(net, channels, size, taps) == maps
    except Exception:  # a few nets are made for three, and each says so in its own way
        return False


def smallest_side(net: nn.Module, channels: int, multiple: int, taps: Sequence[int]) -> int:
    """The smallest side of a square image that the net runs on, of those tried."""
    for side in (multiple, *MIN_SIDES):
        side = ceil(side, multiple) * multiple
        shapes = run(net, channels, [(side, side)], taps)
        if shapes and min(min(m) for m in shapes[side, side]) > 0:
            return side
    return FREE_SIZES[1][1]


def without_memory(work: Callable[[], T]) -> T:
    """What `work` gives on the meta device, or on the CPU where its net looks at values (gemma4)."""
    try:
        with quietly_on("meta"):
            return work()
    except (RuntimeError, NotImplementedError) as error:
        if "meta tensor" not in str(error):
            raise
    with quietly_on("cpu"):
        return work()


@contextmanager
def quietly_on(device: str) -> Iterator[None]:
    """Build and run nets there without warnings, whatever the caller's random numbers and inference mode."""
    quiet = warnings.catch_warnings(action="ignore")
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.device(device), quiet:
        yield


def first_line(error: BaseException | None) -> str:
    return (str(error) or type(error).__name__).strip().split("\n")[0]
