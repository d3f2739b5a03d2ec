"""Attention inside an encoder: MEDUSA's heads in the trunk of a timm net, or on the features it hands out.

In the trunk, a head sits where the net's own module gives a level: what it changes goes on into the deeper stages too.
Whether a net can be reached so is found by asking it: a module's output, scaled, must scale its level and nothing
before it.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.attention.medusa import Medusa
from zoo.encoders.pyramid import Plan, Pyramid, ceil, enlarged
from zoo.errors import UserError, nearest

PLACES = ("trunk", "pyramid")
OPTIONS = {"where": "trunk", "levels": (4, 8, 16, 32)} | {
    p.name: p.default for p in inspect.signature(Medusa).parameters.values() if p.kind is p.KEYWORD_ONLY
}
PROBE = (75, 97)  # image size: unequal sides tell a map's layout, odd ones how a net rounds


def with_defaults(attention: str | Mapping[str, Any]) -> dict[str, Any]:
    """{name: medusa, where: trunk, ...}, every option written out. Raises UserError for an unknown name or option."""
    spec = {"name": attention} if isinstance(attention, str) else dict(attention)
    if (name := spec.get("name", "medusa")) != "medusa":
        guess = nearest(str(name), ["medusa"])
        raise UserError(f"There is no attention {name!r} for an encoder{guess}; there is: medusa.")
    for option in spec.keys() - {"name"}:
        if option not in OPTIONS:
            guess = nearest(option, OPTIONS) or "."
            raise UserError(f"'medusa' has no option {option!r}{guess} Its options: {', '.join(OPTIONS)}.")
    if spec.get("where", "trunk") not in PLACES:
        raise UserError(f"MEDUSA's heads act where: {' or '.join(PLACES)}, not {spec['where']!r}.")
    return {"name": "medusa", **OPTIONS, **spec}


class Attended(nn.Module):
    """An encoder with MEDUSA; at the start equal to the bare one bit for bit.

    trunk: the encoder. where: "trunk" = heads act on a timm net's own maps, so that later stages see what they did;
    "pyramid" = on the features alone (any encoder, frozen ones at no loss). levels: strides that get a head.
    Raises UserError where the heads cannot act in the trunk.
    """

    def __init__(self, trunk: nn.Module, name: str, *, where: str, levels: Sequence[int], **options: Any):
        super().__init__()
        self.strides: tuple[int, ...] = trunk.strides  # type: ignore[assignment]
        self.channels: tuple[int, ...] = trunk.channels  # type: ignore[assignment]
        self.mean, self.std = trunk.mean, trunk.std
        chosen = [i for i, stride in enumerate(self.strides) if stride in levels]
        if not chosen:
            asked = list(self.strides)
            raise UserError(f"MEDUSA's levels are {list(levels)}, but the decoder asks for strides {asked}.")
        self.trunk, self.where = trunk, where
        self._now: list[tuple[Tensor, Sequence[int]]] = []  # context and size of the image on its way through the trunk
        if where == "pyramid":
            self.at = tuple(chosen)
            channels = [self.channels[i] for i in self.at]
        else:
            if not isinstance(trunk, Pyramid):
                raise UserError(f"MEDUSA's heads cannot act inside {name!r}, which is no timm net; set where: pyramid.")
            self.at = tuple(sorted({tap for i in chosen for tap in trunk.plan.levels[i]}))  # stems are no trunk
            self.layouts = layouts(trunk, name, self.at)
            channels = [trunk.plan.tap_channels[tap] for tap in self.at]
            for i, tap in enumerate(self.at):  # of partials, which a copy takes along with what they are about
                tapped(trunk, tap).register_forward_hook(partial(_act, self, i))
        medusa = Medusa(channels, **options)
        self.body, self.heads = medusa.body, medusa.heads

    @property
    def plan(self) -> Plan | None:
        """What the trunk's net takes and gives, where it is timm's."""
        return getattr(self.trunk, "plan", None)

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (B, C, H, W), normalised; gives what the trunk gives, with the heads at work."""
        context = self.body(image)
        if self.where == "trunk":
            self._now.append((context, image.shape[-2:]))
        try:
            features = list(self.trunk(image))
        finally:
            self._now.clear()
        if self.where == "pyramid":
            for head, level in zip(self.heads, self.at, strict=True):
                features[level] = head(features[level], context)
        return features


def _act(attended: Attended, index: int, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """The hook: the module's output with its head's work done on it, in the module's own layout."""
    if not attended._now:  # somebody runs the net by itself
        return output
    context, (height, width) = attended._now[-1]
    layout, tap = attended.layouts[index], attended.at[index]
    f = to_map(output, layout, tap_size(attended.trunk, tap, height, width))  # type: ignore[arg-type]
    acted: Tensor = attended.heads[index](f, context)
    return from_map(acted, output, layout)


def to_map(x: Tensor, layout: str | int, grid: tuple[int, int]) -> Tensor:
    """A module's output as (B, C, h, w); layout: "nchw", "nhwc", or of tokens (B, N, C) the number that is no patch."""
    if isinstance(layout, int):
        f: Tensor = x[:, layout:].transpose(1, 2).unflatten(2, grid)
        return f
    return x if layout == "nchw" else x.permute(0, 3, 1, 2)


def from_map(f: Tensor, x: Tensor, layout: str | int) -> Tensor:
    """(B, C, h, w) in the layout of x, which it came from."""
    if isinstance(layout, int):
        tokens = f.flatten(2).transpose(1, 2)
        return torch.cat([x[:, :layout], tokens], dim=1) if layout else tokens
    return f if layout == "nchw" else f.permute(0, 2, 3, 1)


def tapped(trunk: Pyramid, tap: int) -> nn.Module:
    """The module of the net that gives the tap's map."""
    info: Any = trunk.net.feature_info
    return trunk.net.get_submodule(info[trunk.plan.taps[tap]]["module"])


def tap_size(trunk: Pyramid, tap: int, height: int, width: int) -> tuple[int, int]:
    """(h, w) of the tap's map for an image of height x width."""
    plan = trunk.plan
    size = plan.size or tuple(enlarged(side, plan) for side in (height, width))
    stride = round(plan.tap_strides[tap])
    tall, wide = (ceil(side, stride) if plan.rounds_up else side // stride for side in size)
    return tall, wide


def layouts(trunk: Pyramid, name: str, taps: Sequence[int]) -> list[str | int]:
    """The layout of each tapped module's output; raises UserError where a head there would not be in the trunk.

    On the meta device, where there are no values, shapes alone are looked at.
    """
    parameter = next(trunk.net.parameters())
    generator = None if parameter.is_meta else torch.Generator().manual_seed(0)
    image = torch.randn(1, trunk.plan.net_channels, *PROBE, generator=generator).to(parameter)
    try:
        with torch.no_grad(), asleep(trunk):
            image = trunk.enlarge(image)
            plain = maps(trunk, image)
            found = [layout(trunk, tap, image, plain[tap]) for tap in taps]
            for tap in () if parameter.is_meta else taps:
                handle = tapped(trunk, tap).register_forward_hook(lambda module, _, output: 1.5 * output)
                scaled = maps(trunk, image)
                handle.remove()
                before = all(torch.equal(a, b) for a, b in zip(plain[:tap], scaled[:tap], strict=True))
                if not before or not torch.allclose(scaled[tap], 1.5 * plain[tap], rtol=1e-4, atol=1e-5):
                    stride = trunk.plan.tap_strides[tap]
                    raise ValueError(f"its level of stride {stride:g} does not follow the module that should give it")
            return found
    except Exception as error:  # somebody else's code: whatever a net says that cannot be reached so
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"MEDUSA's heads cannot act inside {name!r} ({reason}); set where: pyramid.") from error


def layout(trunk: Pyramid, tap: int, image: Tensor, expected: Tensor) -> str | int:
    """How the tapped module's output lies, found by comparing it with the tap's map."""
    outputs: list[Any] = []
    handle = tapped(trunk, tap).register_forward_hook(lambda module, _, output: outputs.append(output))
    maps(trunk, image)
    handle.remove()
    if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
        raise ValueError("a module runs several times or gives no tensor")
    output, grid = outputs[0], tap_size(trunk, tap, *PROBE)
    candidates: list[str | int] = ["nchw", "nhwc"] if output.ndim == 4 else [output.shape[1] - grid[0] * grid[1]]
    for candidate in candidates:
        f = to_map(output, candidate, grid)
        if f.shape == expected.shape and (f.is_meta or torch.equal(f, expected)):
            return candidate
    raise ValueError(f"a module gives {tuple(output.shape)} for a level of {tuple(expected.shape)}")


def maps(trunk: Pyramid, image: Tensor) -> list[Tensor]:
    """The taps' maps, for an image that the net takes."""
    net: Any = trunk.net
    found: list[Tensor] = net.forward_intermediates(
        image, indices=list(trunk.plan.taps), output_fmt="NCHW", intermediates_only=True
    )
    return found


@contextmanager
def asleep(module: nn.Module) -> Iterator[None]:
    """The module in eval mode, each part in its own mode again afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    yield
    for part, mode in modes:
        part.training = mode
