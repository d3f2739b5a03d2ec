"""What is put together here: every decoder of the zoo, made tiny, and one tiny encoder of every kind.

A new decoder is covered by being registered. Where its defaults are large, a row in TINY keeps these tests fast.
"""

import importlib.util
import random
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo.model import Model
from zoo.registry import DECODERS, MODELS, Entry

TINY: dict[str, dict[str, Any]] = {  # a decoder that is not here has its defaults
    "reverse_attention": {"width": 8, "ra_widths": [8, 8, 8]},
    "self_guided": {"width": 8, "qk_width": 4, "semantic_width": 8},
    "unet": {"widths": [8, 8, 8, 8, 8]},
    "window_upsample": {"widths": [16, 16, 8, 8, 8], "windows": 4},
    "smp/deeplabv3plus": {"out_channels": 16},
    "smp/fpn": {"pyramid_channels": 16, "segmentation_channels": 32},
    "smp/linknet": {"prefinal_channels": 8},
    "smp/manet": {"decoder_channels": [8, 8, 8, 8, 8], "reduction": 2, "pab_channels": 8},
    "smp/pan": {"decoder_channels": 8},
    "smp/pspnet": {"out_channels": 16},
    "smp/segformer": {"segmentation_channels": 16},
    "smp/unetplusplus": {"decoder_channels": [8, 8, 8, 8, 8]},
    "smp/upernet": {"decoder_channels": 16},
}

KINDS: dict[str, dict[str, Any]] = {
    "convolutional": {"name": "test_resnet"},
    "stem": {"name": "test_convnext"},
    "windows": {
        "name": "swin_tiny_patch4_window7_224", "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
    },
    "patch16": {"name": "vit_tiny_patch16_224", "embed_dim": 32, "depth": 4, "num_heads": 2},
    "patch14": {"name": "vit_small_patch14_dinov2", "embed_dim": 32, "depth": 4, "num_heads": 2},
    "hybrid": {"name": "vit_tiny_r_s16_p8_224", "embed_dim": 32, "depth": 4, "num_heads": 2},
    "odd": {"name": "crossvit_tiny_240", "embed_dim": [16, 32], "depth": [[1, 1, 0]], "num_heads": [1, 2]},
    "fixed": {"name": "levit_128s", "embed_dim": [16, 16, 16], "depth": [1, 1, 1], "num_heads": [1, 1, 1]},
}  # fmt: skip
WHAT = {  # each kind stands for
    "convolutional": "convolutions with a map of every stride from 2 to 32",
    "stem": "convolutions whose first map is of stride 4: stride 2 is a stem of ours; odd sides are rounded down",
    "windows": "a hierarchical transformer, whose maps are cut into windows",
    "patch16": "a plain transformer, the image padded to patches of 16",
    "patch14": "a plain transformer, the image padded to patches of 14",
    "hybrid": "a convolutional stem under a plain transformer",
    "odd": "two transformers in one that see the image at two sizes; strides 12 and 17.1",
    "fixed": "takes 224 x 224 alone, and the image is resized to it; strides 16, 32 and 56",
}

SIZES = [(1, 1), (20, 20), (64, 64), (250, 333), (96, 160), (1, 200)]
CHANNELS = [1, 3, 5]


def decoders() -> list[str]:
    """Names of the zoo's decoders that take a pyramid; without smp/... where that package is not installed."""
    smp = importlib.util.find_spec("segmentation_models_pytorch") is not None
    return [
        name
        for name, entry in _own(zoo.list_decoders(), DECODERS.entries)
        if not hasattr(entry.build, "keep") and (smp or not name.startswith("smp/"))
    ]


def models() -> list[str]:
    """Names of the zoo's published models."""
    return [name for name, _ in _own(zoo.list_models(), MODELS.entries)]


def _own(names: Sequence[str], entries: dict[str, Entry]) -> Iterator[tuple[str, Entry]]:
    """Without what tests and plugins have registered."""
    for name in names:
        if entries[name].build.__module__.startswith("zoo."):
            yield name, entries[name]


def create(decoder: str, kind: str, *, channels: int = 3, **encoder: Any) -> Model:
    """The decoder, tiny, on a tiny encoder of that kind; encoder: further options of it."""
    torch.manual_seed(0)
    tasks = DECODERS.find(decoder).tasks
    return zoo.create_model(
        task=tasks[0] if tasks else "segmentation",
        encoder={**KINDS[kind], **encoder},
        decoder={"name": decoder, **TINY.get(decoder, {})},
        num_classes=2,
        in_channels=channels,
    )


def pictures(model: Model, batch: int, height: int, width: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Images and what the model's task takes beside them."""
    image = torch.rand(batch, model.in_channels, height, width, generator=torch.Generator().manual_seed(1))
    return image, model.example_inputs(image)


def each(decoders: Sequence[str], kinds: Sequence[str]) -> list[tuple[str, str]]:
    """Every decoder and every kind at least once: what holds of a part beside one holds beside others."""
    longest = max(len(decoders), len(kinds))
    return [(decoders[i % len(decoders)], kinds[i % len(kinds)]) for i in range(longest)]


def faults(decoder: str, kind: str) -> Iterator[str]:
    """What is wrong with a decoder on an encoder of that kind, over every size and number of channels."""
    for channels in CHANNELS:
        model = create(decoder, kind, channels=channels).eval()
        for height, width in SIZES:
            try:
                told = fault(model, height, width)
            except Exception as error:  # somebody else's code, any of it
                told = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            if told:
                yield f"{height}x{width}, {channels} channels: {told}"


def fault(model: Model, height: int, width: int) -> str:
    """What is wrong with the answer on an image of that size; empty where nothing is."""
    image, inputs = pictures(model, 1, height, width)
    with torch.no_grad():
        answer = model.answer(image, **inputs)
    for name, value in answer.items():
        if name in model.task.maps and value.shape[-2:] != (height, width):
            return f"{name} is {tuple(value.shape)}"
        if name in model.task.maps and value.dtype != image.dtype:
            return f"{name} is {value.dtype}"
        if value.is_floating_point() and not value.isfinite().all():
            return f"{name} is not finite"
    return ""


def tensors(outputs: Any) -> Iterator[Tensor]:
    """All tensors in the outputs of a model, those of `aux` and `losses` too."""
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        for value in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from tensors(value)


def cover(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows that hold every pair of values of every two axes: the product of the two longest, the others filled in."""
    draw = random.Random(0)
    open_pairs = {(i, a, j, b) for i, j in combinations(range(len(axes)), 2) for a, b in product(axes[i], axes[j])}
    rows = []
    # the axes come longest first; after their product, whatever is still open, if anything is
    for start in product(*axes[:2]):
        rests = list(product(*axes[2:]))
        draw.shuffle(rests)
        rows.append(max(((*start, *rest) for rest in rests), key=lambda row: len(open_pairs & pairs(row))))
        open_pairs -= pairs(rows[-1])
    while open_pairs:
        rows.append(max(product(*axes), key=lambda row: len(open_pairs & pairs(row))))
        open_pairs -= pairs(rows[-1])
    return rows


def pairs(row: Sequence[Any]) -> set[tuple[int, Any, int, Any]]:
    """The pairs of values that a row holds, each with its place."""
    return {(i, row[i], j, row[j]) for i, j in combinations(range(len(row)), 2)}
