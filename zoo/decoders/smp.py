"""The classic decoders of segmentation_models_pytorch, in its own code, under any encoder and at any image size.

Source: github qubvel-org/segmentation_models.pytorch (MIT), 0.5 or newer; pip install 'visionzoo[smp]'. It is imported
when the first of these is built. Options have the names and defaults of its decoder classes (where such a class has no
default: of its models). Weights of its whole models are converted by KEYS.

Its models stand on encoders that have no map of stride 2 (convnext, swin) without that level. Here it is a stem on
the image, so that weights of UNet++, Linknet, MAnet and SegFormer on such an encoder do not fit; the others' do.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.registry import register_decoder

MODES = ("nearest", "bilinear", "bicubic", "area", "nearest-exact")

PARTS = (
    (r"decoder\.(.*)", r"decoder.net.\1"),
    (r"segmentation_head\.(.*)", r"decoder.head.\1"),
    (r"classification_head\..*", ""),  # of the whole image, where `aux_params` was given
)
# Encoders "tu-..." are timm's, one or two levels deeper; timm's feature lists write stages.0 as stages_0.
TIMM = (
    (r"encoder\.model\.([A-Za-z]\w*?)_(\d+)\.(.*)", r"encoder.net.\1.\2.\3"),
    (r"encoder\.model\.features_(.*)", r"encoder.net.features.\1"),  # densenet
    (r"encoder\.model\.(?:model\.)?(.*)", r"encoder.net.\1"),
)
KEYS = (*PARTS, *TIMM, (r"encoder\.(.*)", r"encoder.net.\1"))


class Classic(nn.Module):
    """A decoder and a segmentation head of segmentation_models_pytorch, `net` and `head`.

    features: one (B, C_i, ceil(H/s_i), ceil(W/s_i)) per stride; gives logits (B, num_outputs, H, W), enlarged from
    stride 4 or so by the head itself, with aligned corners.
    path: of the class in `segmentation_models_pytorch.decoders`. options: what it takes beside the channels. strides:
    of the features. width: channels that the head takes. kernel, upsampling: of the head. least: cells that a side of
    the deepest features must have. drawn: whether weights start as it draws them, as most of its models' do.
    Its decoders enlarge by whole factors, so each level is extended at the right and the bottom, its last cells
    repeated, to the size it has for the next multiple of the largest stride; the logits are cropped. At multiples the
    answer is segmentation_models_pytorch's.
    Raises UserError where the package is missing or refuses an option.
    """

    def __init__(
        self,
        path: str,
        channels: Sequence[int],
        num_outputs: int,
        options: Mapping[str, Any],
        *,
        strides: Sequence[int],
        width: int,
        kernel: int = 1,
        upsampling: int = 4,
        least: int = 1,
        drawn: bool = True,
    ):
        super().__init__()
        self.name = path.rpartition(".")[2]
        self.levels, self.least = tuple(strides), least
        mode = options.get("interpolation_mode", "nearest")
        if mode not in MODES:
            raise UserError(f"{self.name} does not know interpolation_mode {mode!r}; choose one of {', '.join(MODES)}.")
        norm = options.get("use_norm")
        if "layernorm" in (norm, norm.get("type") if isinstance(norm, Mapping) else None):
            # it is taken, and fails on the first image: nn.LayerNorm looks for channels last
            raise UserError(f"{self.name} does not run with use_norm {norm!r}; choose batchnorm or identity.")
        smp = package()
        self.skipped = strides[0].bit_length() - 1  # levels that its list of features starts with: strides 1, 2, ...
        try:
            home = importlib.import_module(f"{smp.__name__}.decoders.{path.rpartition('.')[0]}")
            self.net = getattr(home, self.name)([0] * self.skipped + list(channels), **options)
            self.head = smp.base.SegmentationHead(width, num_outputs, kernel_size=kernel, upsampling=upsampling)
            if drawn:
                smp.base.initialization.initialize_decoder(self.net)
                smp.base.initialization.initialize_head(self.head)
        except Exception as error:  # ValueError, KeyError, TypeError, AttributeError: as the option has it
            told = (str(error) or type(error).__name__).strip().split("\n")[0]
            raise UserError(f"segmentation_models_pytorch's {self.name} refuses {dict(options)}: {told}") from error

    def forward(self, features: list[Tensor], image: Tensor) -> dict[str, Tensor]:
        height, width = image.shape[-2:]
        cell = max(self.levels)
        tall, wide = (max((side + cell - 1) // cell, self.least) * cell for side in (height, width))
        # of the levels above no values are used, but SegFormer asks for the first one's size
        blank = image.new_empty(image.shape[0], 0, tall, wide)
        levels = [blank] * self.skipped
        levels += [extend(f, tall // s, wide // s) for f, s in zip(features, self.levels, strict=True)]
        try:
            x = self.net(levels)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"{self.name} averages an image to one cell before a BatchNorm, which learns nothing from a batch of"
                " one image; train it with a batch_size of at least 2."
            ) from error
        # cropped by F.pad, not a slice: torch.export asks a view with open sizes whether it is contiguous
        return {"logits": F.pad(self.head(x), (0, width - wide, 0, height - tall))}


def extend(x: Tensor, height: int, width: int) -> Tensor:
    """x (B, C, h, w) at (B, C, height, width), not smaller: its last row and column are repeated."""
    below, right = height - x.shape[-2], width - x.shape[-1]
    # not asked while a program is traced: the answer would fix a height and width that are left open
    if not torch.compiler.is_compiling() and below == right == 0:
        return x
    return F.pad(x, (0, right, 0, below), mode="replicate")


def last_of(decoder_channels: Sequence[int], name: str) -> int:
    """The channels after the last of five blocks. Raises UserError where there are not five."""
    if not isinstance(decoder_channels, list | tuple) or len(decoder_channels) != 5:
        raise UserError(f"{name} has decoder_channels {decoder_channels!r}; give 5, one per level, the deepest first.")
    last: int = decoder_channels[-1]
    return last


def package() -> Any:
    """segmentation_models_pytorch. Raises UserError where it is not installed."""
    try:
        return importlib.import_module("segmentation_models_pytorch")
    except ImportError:
        raise UserError(
            "The decoders smp/... are those of segmentation_models_pytorch, which is not installed;"
            " pip install 'visionzoo[smp]'."
        ) from None


@register_decoder(
    name="smp/fpn", tasks=("segmentation",), paper="arXiv 1612.03144, arXiv 1901.02446", licence="MIT", keys=KEYS
)
class FPN(Classic):
    """FPN: a feature pyramid whose levels are summed (or concatenated) at stride 4.

    merge_policy: "add" or "cat". segmentation_channels: a multiple of 32, the groups of its norms.
    """

    strides = (4, 8, 16, 32)

    def __init__(
        self,
        channels: Sequence[int],
        num_outputs: int,
        *,
        pyramid_channels: int = 256,
        segmentation_channels: int = 128,
        dropout: float = 0.2,
        merge_policy: str = "add",
        interpolation_mode: str = "nearest",
    ):
        super().__init__(
            "fpn.decoder.FPNDecoder",
            channels,
            num_outputs,
            dict(
                pyramid_channels=pyramid_channels, segmentation_channels=segmentation_channels, dropout=dropout,
                merge_policy=merge_policy, interpolation_mode=interpolation_mode,
            ),
            strides=self.strides,
            width=segmentation_channels * (4 if merge_policy == "cat" else 1),
            least=2 if segmentation_channels == 32 else 1,  # a group of one channel in one cell is refused by its norms
        )  # fmt: skip


@register_decoder(name="smp/unetplusplus", tasks=("segmentation",), paper="arXiv 1807.10165", licence="MIT", keys=KEYS)
class UnetPlusPlus(Classic):
    """UNet++: a U-Net whose skips are dense grids of blocks.

    decoder_channels: per block, the deepest first. attention_type: None or "scse". center: two convolutions on the
    deepest features, which segmentation_models_pytorch has on VGG.
    """

    strides = (2, 4, 8, 16, 32)

    def __init__(
        self,
        channels: Sequence[int],
        num_outputs: int,
        *,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        use_norm: bool | str | dict[str, Any] = "batchnorm",
        attention_type: str | None = None,
        interpolation_mode: str = "nearest",
        center: bool = False,
    ):
        super().__init__(
            "unetplusplus.decoder.UnetPlusPlusDecoder",
            channels,
            num_outputs,
            dict(
                decoder_channels=decoder_channels, use_norm=use_norm, attention_type=attention_type,
                interpolation_mode=interpolation_mode, center=center,
            ),
            strides=self.strides,
            width=last_of(decoder_channels, "smp/unetplusplus"),
            kernel=3,
            upsampling=1,
        )  # fmt: skip


@register_decoder(
    name="smp/deeplabv3plus", tasks=("segmentation",), paper="arXiv 1802.02611", licence="MIT", keys=(*PARTS, *TIMM)
)
class DeepLabV3Plus(Classic):
    """DeepLabV3+: atrous spatial pyramid pooling on the last features, refined with those of stride 4.

    output_stride: 8 or 16, of the last features. Published on an encoder whose last stages are dilated instead of
    strided: encoder {name: resnet50, output_stride: 16}, for the nets of timm that can. On any other the last features
    are those of that stride, and deeper stages are left out.
    Its weights convert from encoders "tu-...". segmentation_models_pytorch's own ResNets dilate the first convolution
    of a dilated stage twice as wide as timm's; the same weights would answer otherwise, so they are refused.
    Trains on batches of 2 or more: of the image's mean a BatchNorm has one value per image.
    """

    @staticmethod
    def strides(output_stride: int = 16) -> tuple[int, ...]:
        return (4, output_stride)

    def __init__(
        self,
        channels: Sequence[int],
        num_outputs: int,
        *,
        out_channels: int = 256,
        atrous_rates: Sequence[int] = (12, 24, 36),
        output_stride: int = 16,
        aspp_separable: bool = True,
        aspp_dropout: float = 0.5,
    ):
        if output_stride not in (8, 16):
            raise UserError(f"smp/deeplabv3plus has no output_stride {output_stride!r}; choose 8 or 16.")
        super().__init__(
            "deeplabv3.decoder.DeepLabV3PlusDecoder",
            channels,
            num_outputs,
            dict(
                encoder_depth=5, out_channels=out_channels, atrous_rates=atrous_rates, output_stride=output_stride,
                aspp_separable=aspp_separable, aspp_dropout=aspp_dropout,
            ),
            strides=self.strides(output_stride),
            width=out_channels,
            drawn=False,
        )  # fmt: skip


@register_decoder(
    name="smp/pspnet",
    tasks=("segmentation",),
    paper="arXiv 1612.01105",
    licence="MIT",
    keys=((r"encoder\.layer[34]\..*", ""), *KEYS),  # its own ResNets keep the stages that they do not run
)
class PSPNet(Classic):
    """PSPNet: features of stride 8, beside their means over a grid of 1, 2, 3 and 6 cells.

    As in segmentation_models_pytorch (encoder_depth=3) the encoder ends at stride 8.
    """

    strides = (8,)
    open_sizes = False  # it pools to grids, which exports rightly at a fixed size alone

    def __init__(
        self,
        channels: Sequence[int],
        num_outputs: int,
        *,
        use_norm: bool | str | dict[str, Any] = "batchnorm",
        out_channels: int = 512,
        dropout: float = 0.2,
    ):
        super().__init__(
            "pspnet.decoder.PSPDecoder",
            channels,
            num_outputs,
            dict(use_norm=use_norm, out_channels=out_channels, dropout=dropout),
            strides=self.strides,
            width=out_channels,
            kernel=3,
            upsampling=8,
        )
        if channels[-1] % 4:  # four means of a quarter of the channels are fewer than it counts on
            rule = package().base.modules.Conv2dReLU
            self.net.conv = rule(channels[-1] // 4 * 4 + channels[-1], out_channels, 1, use_norm=use_norm)
            package().base.initialization.initialize_decoder(self.net.conv)


@register_decoder(name="smp/upernet", tasks=("segmentation",), paper="arXiv 1807.10221", licence="MIT", keys=KEYS)
class UPerNet(Classic):
    """UPerNet: pyramid pooling on the deepest features, a feature pyramid above, all levels fused at stride 4.

    Trains on batches of 2 or more: of the image's mean a BatchNorm has one value per image.
    """

    strides = (4, 8, 16, 32)
    open_sizes = False  # it pools to grids, which exports rightly at a fixed size alone

    def __init__(
        self,
        channels: Sequence[int],
        num_outputs: int,
        *,
        decoder_channels: int = 256,
        use_norm: bool | str | dict[str, Any] = "batchnorm",
    ):
        super().__init__(
            "upernet.decoder.UPerNetDecoder",
            channels,
            num_outputs,
            dict(decoder_channels=decoder_channels, use_norm=use_norm),
            strides=self.strides,
            width=decoder_channels,
        )


@register_decoder(name="smp/segformer", tasks=("segmentation",), paper="arXiv 2105.15203", licence="MIT", keys=KEYS)
class Segformer(Classic):
    """SegFormer's decoder: a linear layer per level, all brought to stride 4 and fused.

    As in segmentation_models_pytorch the level of stride 2 takes part; the paper has those of 4 to 32.
    """

    strides = (2, 4, 8, 16, 32)

    def __init__(self, channels: Sequence[int], num_outputs: int, *, segmentation_channels: int = 256):
        super().__init__(
            "segformer.decoder.SegformerDecoder",
            channels,
            num_outputs,
            dict(segmentation_channels=segmentation_channels),
            strides=self.strides,
            width=segmentation_channels,
        )


@register_decoder(name="smp/linknet", tasks=("segmentation",), paper="arXiv 1707.03718", licence="MIT", keys=KEYS)
class Linknet(Classic):
    """LinkNet: transposed convolutions climb up, the encoder's features are added on the way."""

    strides = (2, 4, 8, 16, 32)

    def __init__(
        self,
        channels: Sequence[int],
        num_outputs: int,
        *,
        prefinal_channels: int = 32,
        use_norm: bool | str | dict[str, Any] = "batchnorm",
    ):
        super().__init__(
            "linknet.decoder.LinknetDecoder",
            channels,
            num_outputs,
            dict(prefinal_channels=prefinal_channels, use_norm=use_norm),
            strides=self.strides,
            width=prefinal_channels,
            upsampling=1,
        )


@register_decoder(
    name="smp/manet", tasks=("segmentation",), paper="doi 10.1109/ACCESS.2020.3025372", licence="MIT", keys=KEYS
)
class MAnet(Classic):
    """MA-Net: attention over positions on the deepest features, over channels on the way up.

    decoder_channels: per block, the deepest first. Attention takes memory with the square of the image's pixels.
    """

    strides = (2, 4, 8, 16, 32)

    def __init__(
        self,
        channels: Sequence[int],
        num_outputs: int,
        *,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        reduction: int = 16,
        use_norm: bool | str | dict[str, Any] = "batchnorm",
        pab_channels: int = 64,
        interpolation_mode: str = "nearest",
    ):
        super().__init__(
            "manet.decoder.MAnetDecoder",
            channels,
            num_outputs,
            dict(
                decoder_channels=decoder_channels, reduction=reduction, use_norm=use_norm, pab_channels=pab_channels,
                interpolation_mode=interpolation_mode,
            ),
            strides=self.strides,
            width=last_of(decoder_channels, "smp/manet"),
            kernel=3,
            upsampling=1,
        )  # fmt: skip


@register_decoder(name="smp/pan", tasks=("segmentation",), paper="arXiv 1805.10180", licence="MIT")
class PAN(Classic):
    """PAN: a pyramid of attention on the deepest features, global attention on the way up to stride 4.

    Equal to smp.PAN(encoder_output_stride=32), any encoder's own strides. `zoo.convert_weights` refuses its weights:
    those of its default, a dilated last stage, have the same names and would answer otherwise without a word.
    Its attention halves the deepest features three times, so that sides below 256 pixels are extended to 256
    (segmentation_models_pytorch refuses them).
    Trains on batches of 2 or more: of the image's mean a BatchNorm has one value per image.
    """

    strides = (4, 8, 16, 32)

    def __init__(
        self,
        channels: Sequence[int],
        num_outputs: int,
        *,
        decoder_channels: int = 32,
        interpolation_mode: str = "bilinear",
    ):
        super().__init__(
            "pan.decoder.PANDecoder",
            channels,
            num_outputs,
            dict(encoder_depth=5, decoder_channels=decoder_channels, interpolation_mode=interpolation_mode),
            strides=self.strides,
            width=decoder_channels,
            kernel=3,
            least=8,
        )
