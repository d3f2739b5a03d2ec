"""Multi-scale self-guided attention: each scale attends to all scales fused, twice, guided by a shared autoencoder.

Source: Sinha and Dolz 2020, "Multi-scale self-guided attention for medical image segmentation", arXiv 1906.02849; the
structure follows the official code (github sinAshish/Multi-Scale-Attention), which has two steps where the figure has
one. All scales have one size and stand side by side on the channel axis, the deepest first: one grouped convolution
does what the official code does scale by scale.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.attention.position_channel import ChannelAttention, PositionAttention
from zoo.errors import UserError
from zoo.layers import resize
from zoo.registry import register_decoder, register_model


class Slopes(nn.PReLU):
    """PReLU with one slope for each of the groups side by side: (B, groups * C, h, w), the same out."""

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x.unflatten(1, (self.num_parameters, -1)), self.weight).flatten(1, 2)


def conv(channels: int, out_channels: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    """A convolution with bias and "same" padding; channels: of one group."""
    return nn.Conv2d(groups * channels, groups * out_channels, kernel, padding=kernel // 2, groups=groups)


def conv_norm_slope(channels: int, out_channels: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, PReLU."""
    return nn.Sequential(
        conv(channels, out_channels, kernel, groups), nn.BatchNorm2d(groups * out_channels), Slopes(groups)
    )


def conv_norm_relu(channels: int, out_channels: int) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    """3x3 convolution, BatchNorm, ReLU."""
    return conv(channels, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)


def halved(x: Tensor) -> Tensor:
    """The maximum of each 2x2 window; a side of 1 stays 1."""
    return F.max_pool2d(x, [min(2, side) for side in x.shape[-2:]])


class SemanticAutoencoder(nn.Module):
    """The semantic module: x (B, channels, h, w) to a code (B, 2 * width, h // 4, w // 4) and back to x's shape."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.first, *rest = conv_norm_relu(channels, width)
        self.encode1 = nn.Sequential(*rest, *conv_norm_relu(width, width))
        self.encode2 = nn.Sequential(*conv_norm_relu(width, 2 * width), *conv_norm_relu(2 * width, 2 * width))
        self.decode2 = nn.Sequential(
            *conv_norm_relu(2 * width, width),
            *conv_norm_relu(width, width),
            nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
        )
        self.decode1 = nn.Sequential(
            *conv_norm_relu(width, channels),
            *conv_norm_relu(channels, channels),
            nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2),
        )

    def forward(self, x: Tensor, shared: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The code and the reconstruction. shared: see `share`; x is then the rest, for one scale or several."""
        size = x.shape[-2:]
        if shared is None:
            x = self.first(x)
        else:
            x = F.conv2d(x, self.first.weight[:, : x.shape[1]], padding=1)
            x.unflatten(0, (-1, shared.shape[0])).add_(shared)
        x = halved(self.encode1(x))
        code = halved(self.encode2(x))
        x = resize(self.decode2(code), x.shape[-2:])
        return code, resize(self.decode1(x), size)

    def share(self, half: Tensor) -> Tensor:
        """What the first convolution makes of the last channels of its input: the same for all who have them alike."""
        return F.conv2d(half, self.first.weight[:, -half.shape[1] :], self.first.bias, padding=1)


class GuidedAttention(nn.Module):
    """One step: position and channel attention of every scale, gated by what the shared autoencoder reconstructs.

    d (B, scales * width, h, w): the scales side by side. guides: (B, width, h, w) each, one for every scale or a
    single one for all. Gives the attended scales like d; the codes (scales * B, ...); what the autoencoder was given
    and what it made of it, both (B, scales * 2 * width, h, w).
    """

    def __init__(
        self, scales: int, width: int, *, qk_width: int, semantic_width: int, share_reading: bool, batch_scales: bool
    ):
        super().__init__()
        both = 2 * width
        self.scales, self.share_reading, self.batch_scales = scales, share_reading, batch_scales
        self.autoencoder = SemanticAutoencoder(both, semantic_width)
        self.position = nn.Sequential(
            *conv_norm_slope(both, width, groups=scales),
            PositionAttention(width, qk_width, groups=scales),
            *conv_norm_slope(width, width, groups=scales),
        )
        self.channel = nn.Sequential(
            *conv_norm_slope(both, width, groups=scales),
            ChannelAttention(groups=scales),
            *conv_norm_slope(width, width, groups=scales),
        )
        self.read = conv(both, width, groups=1 if share_reading else scales)
        self.last = conv(width, width, kernel=1, groups=scales)

    def forward(self, d: Tensor, guides: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        parts = list(d.chunk(self.scales, dim=1))
        every = guides * (self.scales // len(guides))
        u = torch.cat([half for pair in zip(parts, every, strict=True) for half in pair], dim=1)
        if len(guides) == 1:
            code, made = self.reconstruct(parts, self.autoencoder.share(guides[0]))
        else:
            code, made = self.reconstruct(list(u.chunk(self.scales, dim=1)))
        v = torch.cat(made, dim=1)
        gate = torch.cat([self.read(part) for part in made], dim=1) if self.share_reading else self.read(v)
        return self.last((self.position(u) + self.channel(u)) * gate), code, u, v

    def reconstruct(self, parts: list[Tensor], shared: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The codes and reconstructions of all scales by the one autoencoder.

        In training each scale has statistics of its own in it, and moves the running ones, as in the official code.
        """
        if self.training and not self.batch_scales:
            codes, made = zip(*(self.autoencoder(part, shared) for part in parts), strict=True)
            return torch.cat(codes), list(made)
        code, batch = self.autoencoder(torch.cat(parts), shared)
        return code, list(batch.unflatten(0, (self.scales, -1)).unbind())


@register_decoder(tasks=("segmentation",), paper="arXiv 1906.02849", licence="Apache-2.0")
class SelfGuided(nn.Module):
    """Multi-scale self-guided attention: the mean of what every scale says after the guided steps.

    features: (B, C_i, ceil(H/s_i), ceil(W/s_i)) at the strides `scales`, finest first; gives logits (B, num_outputs,
    h, w) at the finest. While training also aux, each scale's logits before any attention, then after it, the deepest
    first; and losses: guided, by which the codes of consecutive steps agree, and reconstruction, by which each
    autoencoder repeats its input, each the sum of the scales' mean squares.
    width: channels of a scale. qk_width: of queries and keys. semantic_width: of the autoencoders' first stage.
    steps: of guided attention, each on the one before. share_reading: one convolution reads all of a step's
    reconstructions, in place of one for each scale. detach_targets: the losses pull the later code and the
    reconstruction alone; as published they pull both sides. batch_scales: in training the autoencoder takes its
    statistics over all scales at once, which is faster and another network; answers are computed so in any case.
    """

    loss_weights: ClassVar = {"main": 0.0, "guided": 0.25, "reconstruction": 0.1}  # the maps count as aux alone

    @staticmethod
    def strides(scales: Sequence[int] = (4, 8, 16, 32)) -> tuple[int, ...]:
        return tuple(scales)

    def __init__(
        self,
        channels: Sequence[int],
        num_outputs: int,
        *,
        scales: Sequence[int] = (4, 8, 16, 32),
        width: int = 64,
        qk_width: int = 8,
        semantic_width: int = 256,
        steps: int = 2,
        share_reading: bool = False,
        detach_targets: bool = False,
        batch_scales: bool = False,
    ):
        super().__init__()
        sizes = dict(scales=len(scales), width=width, qk_width=qk_width, semantic_width=semantic_width, steps=steps)
        if wrong := [name for name, value in sizes.items() if value < 1]:
            raise UserError(f"self_guided has {wrong[0]} {sizes[wrong[0]]}; give 1 or more.")
        if len(channels) != len(scales):
            raise UserError(
                f"self_guided takes a feature level for each of its scales {tuple(scales)}, not {len(channels)}"
                f" {tuple(channels)}; set `scales` to the levels' strides."
            )
        self.scales, self.detach_targets = len(scales), detach_targets
        self.down = nn.ModuleList(conv_norm_slope(c, width, kernel=1) for c in reversed(channels))
        self.fuse = nn.Sequential(
            *conv_norm_slope(len(scales) * width, width),
            *conv_norm_slope(width, width),
            *conv_norm_slope(width, width, kernel=1),
        )
        self.early = conv(width, num_outputs, kernel=1, groups=len(scales))
        self.steps = nn.ModuleList(
            GuidedAttention(
                len(scales), width, qk_width=qk_width, semantic_width=semantic_width,
                share_reading=share_reading, batch_scales=batch_scales,
            )
            for _ in range(steps)
        )  # fmt: skip
        self.head = conv(width, num_outputs, kernel=1, groups=len(scales))
        for module in self.modules():  # as published, where the encoder starts so too; here it starts as timm's do
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                for kernel in module.weight.data.chunk(module.groups):
                    nn.init.xavier_normal_(kernel)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, mean=1.0, std=0.02)

    def forward(self, features: list[Tensor], image: Tensor) -> dict[str, Any]:
        size = features[0].shape[-2:]
        d = torch.cat([resize(down(x), size) for down, x in zip(self.down, reversed(features), strict=True)], dim=1)
        if d.is_cpu:  # there groups and batches of large maps are fast in this layout alone
            d = d.contiguous(memory_format=torch.channels_last)
        fused = self.fuse(d)

        guides, codes, terms = [fused], [], []
        for step in self.steps:
            attended, code, u, v = step(d, guides)
            guides = [part * fused for part in attended.chunk(self.scales, dim=1)]
            codes.append(code)
            if self.training:
                terms.append(self.scales * F.mse_loss(v, u.detach() if self.detach_targets else u))
        late = self.head(attended).chunk(self.scales, dim=1)
        logits = torch.stack(late).mean(dim=0)
        if not self.training:
            return {"logits": logits}

        guided = [self.scales * F.mse_loss(b, a.detach() if self.detach_targets else a) for a, b in pairwise(codes)]
        losses = {"guided": sum(guided, logits.new_zeros(())), "reconstruction": torch.stack(terms).sum()}
        return {"logits": logits, "aux": [*self.early(d).chunk(self.scales, dim=1), *late], "losses": losses}


SCALES = (4, 3, 2, 1)  # the official numbers of the scales, in our order


def rules() -> tuple[tuple[str, str], ...]:
    """Official MS-Dual-Guided (`DAF_stack`) -> ours. "#i": scale i of a grouped layer; of counters one is kept."""
    found = [
        (r"(?:conv[67]_|attention|refine)[1-4]\..*", ""),  # built, but never called
        (r"resnext\.layer0\.0\.(.*)", r"encoder.net.conv1.\1"),
        (r"resnext\.layer0\.1\.(.*)", r"encoder.net.bn1.\1"),
        (r"resnext\.layer1\.1\.(.*)", r"encoder.net.layer1.\1"),
        (r"resnext\.(layer[2-4]\..*)", r"encoder.net.\1"),
        (r"fuse1\.fuse_attn\.(.*)", r"decoder.fuse.\1"),
    ]
    for n, step in ((1, "decoder.steps.0"), (2, "decoder.steps.1")):
        module = rf"semanticModule_{n}_1\."
        found += [
            (rf"{module}enc1\.encode\.0\.(.*)", rf"{step}.autoencoder.first.\1"),
            *((rf"{module}enc1\.encode\.{i + 1}\.(.*)", rf"{step}.autoencoder.encode1.{i}.\1") for i in range(5)),
            (rf"{module}enc2\.encode\.(.*)", rf"{step}.autoencoder.encode2.\1"),
            (rf"{module}dec([12])\.decode\.(.*)", rf"{step}.autoencoder.decode\1.\2"),
        ]
        for i, s in enumerate(SCALES):
            counter = r"\1.\2" if i == 0 else ""
            for branch, official in (("position", "pam"), ("channel", "cam")):
                attention, ours = rf"{official}_attention_{n}_{s}\.attn\.", f"{step}.{branch}"
                found += [
                    (rf"{attention}([15])\.(num_batches_tracked)", counter and rf"{ours}.{counter}"),
                    (rf"{attention}3\.(query|key|value)_conv\.(.*)", rf"{ours}.3.\1.\2#{i}"),
                    (rf"{attention}(.*)", rf"{ours}.\1#{i}"),
                ]
            found += [
                (rf"conv_sem_{n}_{i + 1}\.(.*)", rf"{step}.read.\1#{i}"),
                (rf"conv8_{i + 1 + 10 * (n - 1)}\.(.*)", rf"{step}.last.\1#{i}"),
            ]
    for i, s in enumerate(SCALES):
        found += [
            (rf"down{s}\.(.*)", rf"decoder.down.{i}.\1"),
            (rf"predict{s}\.(.*)", rf"decoder.early.\1#{i}"),
            (rf"predict{s}_2\.(.*)", rf"decoder.head.\1#{i}"),
        ]
    return tuple(found)


KEYS = rules()


@register_model(
    task="segmentation", paper="arXiv 1906.02849", licence="Apache-2.0", weights_licence="none published", keys=KEYS
)
def ms_dual_guided() -> dict[str, Any]:
    """MS-Dual-Guided as published: ResNeXt-101 32x8d from scratch, grey images in [0, 1], four organs + background."""
    return dict(encoder="resnext101_32x8d", decoder="self_guided", num_classes=5, in_channels=1, mean=[0.0], std=[1.0])
