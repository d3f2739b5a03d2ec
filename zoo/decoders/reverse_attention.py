"""PraNet: a coarse map first, then each level looks where the coarser map is *not* sure (reverse attention).

Source: Fan et al. 2020, "PraNet: Parallel Reverse Attention Network for Polyp Segmentation", arXiv 2006.11392; the
structure follows the official code (github DengPingFan/PraNet), where its text and figure leave it open.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.layers import ConvNorm, resize
from zoo.registry import register_decoder, register_model


class Projection(nn.Conv2d):
    """A bias-free 1x1 convolution."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__(channels, out_channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # A 1x1 kernel has nothing to dilate, but for few images on one CPU thread torch takes oneDNN for dilated
        # convolutions and else a matrix product, which needs twice the time on AMD (4.8 against 2.2 ms at stride 8).
        return F.conv2d(x, self.weight, self.bias, dilation=2 if x.is_cpu and not self.training else 1)


class ReceptiveField(nn.Module):
    """Receptive field block: four branches of growing kernel, without activation up to the last sum.

    x (B, channels, h, w); gives (B, width, h, w). The 1x1 convolutions of all branches and of the shortcut are one.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.project = Projection(channels, 5 * width)
        self.norm = nn.BatchNorm2d(5 * width)
        self.branches = nn.ModuleList(
            nn.Sequential(
                ConvNorm(width, width, (1, kernel)),
                ConvNorm(width, width, (kernel, 1)),
                ConvNorm(width, width, 3, dilation=kernel),
            )
            for kernel in (3, 5, 7)
        )
        self.fuse = ConvNorm(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        point, *starts, shortcut = self.norm(self.project(x)).chunk(5, dim=1)
        branches = [branch(start) for branch, start in zip(self.branches, starts, strict=True)]
        return F.relu(self.fuse(torch.cat([point, *branches], dim=1)) + shortcut, inplace=True)


class CoarseHead(nn.Module):
    """The 3x3 convolution k6, its norm and the last 1x1 convolution: (B, channels, h, w) -> (B, num_outputs, h, w).

    No activation stands between them, so while statistics stand still they are one convolution to the classes.
    """

    def __init__(self, channels: int, num_outputs: int):
        super().__init__()
        self.k6 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.last = nn.Conv2d(channels, num_outputs, kernel_size=1)
        self.folds = num_outputs < channels  # else the one convolution would be the larger

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not self.folds:
            coarse: Tensor = self.last(self.norm(self.k6(x)))
            return coarse
        mean, variance = self.norm.get_buffer("running_mean"), self.norm.get_buffer("running_var")
        scale = self.norm.get_parameter("weight") * torch.rsqrt(variance + self.norm.eps)
        shift = self.norm.get_parameter("bias") - mean * scale
        kernel = torch.einsum("oc,cihw->oihw", self.last.weight.flatten(1) * scale, self.k6.weight)
        return F.conv2d(x, kernel, self.last(shift.view(1, -1, 1, 1)).flatten(), padding=1)


class PartialDecoder(nn.Module):
    """Aggregation of three levels into the coarse map g5, at the finest level's size; the names are the spec's.

    r2, r3, r4: (B, width, h, w) at strides 8, 16, 32; gives (B, num_outputs, h, w) at stride 8.
    """

    def __init__(self, width: int, num_outputs: int):
        super().__init__()
        self.k14 = ConvNorm(width, 2 * width)  # both convolutions of U r4 at r3's size in one
        self.k2 = ConvNorm(width, width)
        self.k3 = ConvNorm(width, width)
        self.kc2 = ConvNorm(2 * width, 2 * width)
        self.k5 = ConvNorm(2 * width, 2 * width)
        self.kc3 = ConvNorm(3 * width, 3 * width)
        self.coarse = CoarseHead(3 * width, num_outputs)

    def forward(self, r2: Tensor, r3: Tensor, r4: Tensor) -> Tensor:
        up4 = self.enlarge(r4, r3)
        gate3, t4 = self.k14(up4).chunk(2, dim=1)
        t3 = self.kc2(torch.cat([gate3 * r3, t4], dim=1))
        m2 = self.k2(self.enlarge(up4, r2)) * self.k3(self.enlarge(r3, r2)) * r2
        t2 = self.kc3(torch.cat([m2, self.k5(self.enlarge(t3, r2))], dim=1))
        g5: Tensor = self.coarse(t2)
        return g5

    def enlarge(self, x: Tensor, partner: Tensor) -> Tensor:
        """x at its partner's size with aligned corners, as published; everything after the coarse map uses `resize`."""
        return F.interpolate(x, partner.shape[-2:], mode="bilinear", align_corners=True)


class Refine(nn.Module):
    """Residual of one level: what the features say where the coarser map is not sure.

    x (B, channels, h, w); gate (B, 1, h, w) in [0, 1]; gives (B, num_outputs, h, w). The paper's gate scales x; that
    commutes with the bias-free 1x1 convolution, so `width` maps are scaled here, not the encoder's 512 to 2048.
    """

    def __init__(self, channels: int, width: int, num_outputs: int, *, kernel: int, depth: int, last_kernel: int):
        super().__init__()
        self.project = Projection(channels, width)
        self.norm = nn.BatchNorm2d(width)
        self.convs = nn.ModuleList(ConvNorm(width, width, kernel) for _ in range(depth))
        self.head = ConvNorm(width, num_outputs, last_kernel)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        x = self.norm(gate * self.project(x))
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        residual: Tensor = self.head(x)
        return residual


@register_decoder(tasks=("segmentation",), paper="arXiv 2006.11392", licence="Apache-2.0")
class ReverseAttention(nn.Module):
    """PraNet's decoder: parallel partial decoder for a coarse map, three reverse attention steps to refine it.

    features: (B, C_i, ceil(H/s_i), ceil(W/s_i)) at strides 8, 16, 32; gives logits (B, num_outputs, ceil(H/8),
    ceil(W/8)), and while training aux, the three earlier maps: g5 (stride 8), s4 (stride 32), s3 (stride 16).
    width: channels of the receptive field blocks. ra_widths, ra_kernels: of reverse attention at strides 32, 16, 8.
    exclusive: classes exclude each other. The paper has one class, gated with 1 - sigmoid; more than one is ours: one
    gate for all, 1 - max softmax for exclusive classes, 1 - max sigmoid for independent ones. Both are the paper's
    at one class.
    Levels meet at the partner's size instead of by a factor: equal for multiples of 32, which the official code needs.
    """

    strides = (8, 16, 32)

    def __init__(
        self,
        channels: Sequence[int],
        num_outputs: int,
        *,
        width: int = 32,
        ra_widths: Sequence[int] = (256, 64, 64),
        ra_kernels: Sequence[int] = (5, 3, 3),
        exclusive: bool = True,
    ):
        super().__init__()
        for name, given in (("feature levels", channels), ("ra_widths", ra_widths), ("ra_kernels", ra_kernels)):
            if len(given) != 3:
                raise UserError(f"reverse_attention takes 3 {name}, not {len(given)} {tuple(given)}; give three.")
        if even := [k for k in ra_kernels if k % 2 == 0]:
            raise UserError(f"reverse_attention's ra_kernels has the even size {even[0]}; give odd ones.")
        self.exclusive = exclusive and num_outputs > 1  # of a single class the softmax is 1, the paper's is the sigmoid
        c2, c3, c4 = channels
        w4, w3, w2 = ra_widths
        k4, k3, k2 = ra_kernels

        self.rfb2 = ReceptiveField(c2, width)
        self.rfb3 = ReceptiveField(c3, width)
        self.rfb4 = ReceptiveField(c4, width)
        self.aggregate = PartialDecoder(width, num_outputs)
        self.ra4 = Refine(c4, w4, num_outputs, kernel=k4, depth=3, last_kernel=1)
        self.ra3 = Refine(c3, w3, num_outputs, kernel=k3, depth=2, last_kernel=3)
        self.ra2 = Refine(c2, w2, num_outputs, kernel=k2, depth=2, last_kernel=3)

    def forward(self, features: list[Tensor], image: Tensor) -> dict[str, Any]:
        x2, x3, x4 = features
        g5 = self.aggregate(self.rfb2(x2), self.rfb3(x3), self.rfb4(x4))
        g = resize(g5, x4.shape[-2:])
        s4 = self.ra4(x4, self.unsure(g)) + g
        g = resize(s4, x3.shape[-2:])
        s3 = self.ra3(x3, self.unsure(g)) + g
        g = resize(s3, x2.shape[-2:])
        s2 = self.ra2(x2, self.unsure(g)) + g
        return {"logits": s2, "aux": [g5, s4, s3]} if self.training else {"logits": s2}

    def unsure(self, logits: Tensor) -> Tensor:
        """The gate (B, 1, h, w): 1 minus the largest probability of any class."""
        p = logits.softmax(dim=1) if self.exclusive else logits.sigmoid()
        return 1 - p.amax(dim=1, keepdim=True)


BATCH_NORM = r"(weight|bias|running_mean|running_var)"

# Official PraNet (Res2Net) -> ours. "#i": piece i of a merged convolution or norm, of whose counters one is kept.
KEYS = (
    (r"resnet\.fc\..*", ""),  # the ImageNet classifier, never used
    (r"resnet\.(.*)", r"encoder.net.\1"),
    (r"rfb([234])_1\.branch([0-3])\.0\.conv\.weight", r"decoder.rfb\1.project.weight#\2"),
    (r"rfb([234])_1\.conv_res\.conv\.weight", r"decoder.rfb\1.project.weight#4"),
    (r"ra([234])_conv1\.conv\.weight", r"decoder.ra\1.project.weight"),
    (rf"rfb([234])_1\.branch([0-3])\.0\.bn\.{BATCH_NORM}", r"decoder.rfb\1.norm.\3#\2"),
    (rf"rfb([234])_1\.conv_res\.bn\.{BATCH_NORM}", r"decoder.rfb\1.norm.\2#4"),
    (r"rfb([234])_1\.branch0\.0\.bn\.num_batches_tracked", r"decoder.rfb\1.norm.num_batches_tracked"),
    (r"rfb([234])_1\.(?:branch[1-3]\.0|conv_res)\.bn\.num_batches_tracked", ""),
    *(
        (rf"rfb([234])_1\.branch{b + 1}\.{n + 1}\.{part}\.(.*)", rf"decoder.rfb\1.branches.{b}.{n}.{i}.\2")
        for b in range(3)
        for n in range(3)
        for i, part in enumerate(("conv", "bn"))
    ),
    *(
        rule
        for i, part in enumerate(("conv", "bn"))
        for rule in (
            (rf"rfb([234])_1\.conv_cat\.{part}\.(.*)", rf"decoder.rfb\1.fuse.{i}.\2"),
            (rf"agg1\.conv_upsample([235])\.{part}\.(.*)", rf"decoder.aggregate.k\1.{i}.\2"),
            (rf"agg1\.conv_concat([23])\.{part}\.(.*)", rf"decoder.aggregate.kc\1.{i}.\2"),
            (rf"ra4_conv5\.{part}\.(.*)", rf"decoder.ra4.head.{i}.\1"),
            (rf"ra([23])_conv4\.{part}\.(.*)", rf"decoder.ra\1.head.{i}.\2"),
            *((rf"ra([234])_conv{n + 2}\.{part}\.(.*)", rf"decoder.ra\1.convs.{n}.{i}.\2") for n in range(3)),
        )
    ),
    (r"agg1\.conv_upsample1\.conv\.weight", "decoder.aggregate.k14.0.weight#0"),
    (r"agg1\.conv_upsample4\.conv\.weight", "decoder.aggregate.k14.0.weight#1"),
    (rf"agg1\.conv_upsample1\.bn\.{BATCH_NORM}", r"decoder.aggregate.k14.1.\1#0"),
    (rf"agg1\.conv_upsample4\.bn\.{BATCH_NORM}", r"decoder.aggregate.k14.1.\1#1"),
    (r"agg1\.conv_upsample1\.bn\.num_batches_tracked", "decoder.aggregate.k14.1.num_batches_tracked"),
    (r"agg1\.conv_upsample4\.bn\.num_batches_tracked", ""),
    (r"agg1\.conv4\.conv\.(.*)", r"decoder.aggregate.coarse.k6.\1"),
    (r"agg1\.conv4\.bn\.(.*)", r"decoder.aggregate.coarse.norm.\1"),
    (r"agg1\.conv5\.(.*)", r"decoder.aggregate.coarse.last.\1"),
    (r"ra([234])_conv1\.bn\.(.*)", r"decoder.ra\1.norm.\2"),
)

OFFICIAL = "research and education only, commercial use by permission (the official readme)"


# what they are, and where the authors keep them (Google Drive ids)
WEIGHTS = (
    ("PraNet-19.pth, trained on the polyp set", "Google Drive 1lJv8XVStsp3oNKZHaSr42tawdMOq6FLP"),
    ("res2net50_v1b_26w_4s.pth, ImageNet, what training starts from", "Google Drive 1FjXh_YG1hLGPPM6j-c8UxHcIWtzGGau5"),
)


@register_model(
    task="segmentation",
    paper="arXiv 2006.11392",
    licence="Apache-2.0",
    weights_licence=OFFICIAL,
    keys=KEYS,
    weights=WEIGHTS,
)
def pranet() -> dict[str, Any]:
    """PraNet as published: Res2Net-50 v1b under reverse attention, one class, 352 x 352, ImageNet normalisation."""
    return dict(encoder="res2net50d", decoder="reverse_attention", num_classes=1, input_size=[352, 352])
