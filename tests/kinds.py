"""The smallest decoder of every kind that is not dense, each with its task: they prove the contracts, not the methods.

`register` puts them into the registry for a test; nothing else may see them there.
"""

from collections.abc import Mapping
from contextlib import contextmanager

import torch
from torch import nn

import zoo.create  # noqa: F401 - what is registered later than `before` was noted would be lost
from zoo.registry import DECODERS, ENCODERS, TASKS, register_decoder, register_encoder, register_task

PATCH = 8


class _Task:
    """What every task says of itself; the tests' own, since a base class in the zoo waits for its third user."""

    planes, prompts, maps = {}, {}, ()
    exclusive, class_names, class_colors = False, None, None

    def __init__(self, num_classes):
        self.num_outputs = num_classes

    @property
    def config(self):
        return {"name": self.name}


class TinyPatches(nn.Module):
    """A plain patch encoder of one block that can leave patches out: forward(image, keep) gives (B, n, C) tokens."""

    def __init__(self, in_channels, strides, *, width=16):
        super().__init__()
        self.channels, self.strides = (width,) * len(strides), strides
        self.embed = nn.Conv2d(in_channels, width, PATCH, PATCH)
        self.block = nn.Linear(width, width)

    def forward(self, image, keep=None):
        below, right = -image.shape[-2] % PATCH, -image.shape[-1] % PATCH
        tokens = self.embed(nn.functional.pad(image, (0, right, 0, below))).flatten(2).transpose(1, 2)
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[2]))
        return [self.block(tokens)]


class MaskedTask(_Task):
    name, maps = "test_pretraining", ("prediction", "patch_mask")
    prompts: Mapping[str, object] = {
        "noise": lambda image: torch.rand(len(image), -(-image.shape[2] // PATCH) * -(-image.shape[3] // PATCH))
    }

    def loss(self, outputs, batch, weights=None, **_):
        error = (outputs["prediction"] - batch["image"]).square() * outputs["patch_mask"]
        return {"loss": error.mean()}

    def answer(self, outputs, threshold=None, inputs=None):
        return {"prediction": outputs["prediction"], "patch_mask": outputs["patch_mask"]}


class MaskedDecoder(nn.Module):
    """Visible tokens at their places, a learned token elsewhere, each patch's pixels by one linear layer."""

    strides = (PATCH,)

    def __init__(self, channels, num_outputs, *, visible=0.5):
        super().__init__()
        self.visible = visible
        self.token = nn.Parameter(torch.zeros(1, 1, channels[0]))
        self.head = nn.Linear(channels[0], 3 * PATCH * PATCH)

    def keep(self, image, *, noise):
        return noise.argsort(dim=1)[:, : max(1, int(self.visible * noise.shape[1]))]

    def forward(self, features, image, *, keep, noise):
        (tokens,) = features
        rows, columns = -(-image.shape[2] // PATCH), -(-image.shape[3] // PATCH)
        every = self.token.expand(len(tokens), rows * columns, -1)
        places = keep[..., None].expand(-1, -1, tokens.shape[2])
        pixels = self.head(every.scatter(1, places, tokens)).view(len(tokens), rows, columns, 3, PATCH, PATCH)
        hidden = torch.ones_like(noise).scatter(1, keep, 0.0).view(-1, 1, rows, columns)
        size = image.shape[-2:]
        prediction = pixels.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)[..., : size[0], : size[1]]
        return {
            "prediction": prediction,
            "patch_mask": hidden.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)[..., : size[0], : size[1]],
        }


class GuidedTask(_Task):
    name, maps, planes = "test_matting", ("alpha",), {"guidance": 2}

    def loss(self, outputs, batch, weights=None, **_):
        return {"loss": (outputs["alpha"] - batch["alpha"]).abs().mean()}

    def answer(self, outputs, threshold=None, inputs=None):
        return {"alpha": outputs["alpha"].clamp(0, 1)}


class GuidedDecoder(nn.Module):
    """One convolution on the coarsest level and the guidance beside it."""

    strides = (4,)

    def __init__(self, channels, num_outputs):
        super().__init__()
        self.head = nn.Conv2d(channels[0] + 2, 1, 3, padding=1)

    def forward(self, features, image, *, guidance):
        coarse = nn.functional.interpolate(guidance, features[0].shape[-2:])
        return {"alpha": self.head(torch.cat([features[0], coarse], dim=1))}


class HoleTask(_Task):
    name, maps, planes = "test_inpainting", ("prediction",), {"hole": 1}

    def loss(self, outputs, batch, weights=None, **_):
        return {"loss": (outputs["prediction"] - batch["image"]).abs().mean()}

    def answer(self, outputs, threshold=None, inputs=None):
        return {"image": torch.where(inputs["hole"] > 0.5, outputs["prediction"], inputs["image"])}


class HoleDecoder(nn.Module):
    strides = (4,)

    def __init__(self, channels, num_outputs):
        super().__init__()
        self.head = nn.Conv2d(channels[0], 3, 1)

    def forward(self, features, image):
        return {"prediction": self.head(features[0]), "structure": features[0]}


class PromptTask(_Task):
    name, maps = "test_prompt", ("masks",)
    prompts: Mapping[str, object] = {
        "points": lambda image: torch.rand(len(image), 2, 2),
        "boxes": lambda image: torch.rand(len(image), 1, 4),
    }

    def loss(self, outputs, batch, weights=None, **_):
        return {"loss": outputs["masks"].square().mean()}

    def answer(self, outputs, threshold=None, inputs=None):
        best = outputs["iou"].argmax(dim=1)
        chosen = outputs["masks"].gather(1, best[:, None, None, None].expand(-1, 1, *outputs["masks"].shape[-2:]))
        return {"mask": (chosen[:, 0] > 0).to(torch.uint8), "iou": outputs["iou"].amax(dim=1)}


class PromptDecoder(nn.Module):
    """Three masks, each a product of pixels with a token made of the points and, where there is one, of the box."""

    strides = (4,)

    def __init__(self, channels, num_outputs):
        super().__init__()
        self.points, self.boxes = nn.Linear(2, 3 * channels[0]), nn.Linear(4, 3 * channels[0])
        self.iou = nn.Linear(3 * channels[0], 3)

    def forward(self, features, image, *, points, boxes=None):
        token = self.points(points).mean(dim=1)
        token = token if boxes is None else token + self.boxes(boxes).mean(dim=1)
        kernels = token.view(len(token), 3, -1)
        return {"masks": torch.einsum("bmc,bchw->bmhw", kernels, features[0]), "iou": self.iou(token).sigmoid()}


class QueryTask(_Task):
    name, maps = "test_query", ("mask_logits",)

    def loss(self, outputs, batch, weights=None, **_):
        return {"loss": outputs["mask_logits"].square().mean() + outputs["class_logits"].square().mean()}

    def answer(self, outputs, threshold=None, inputs=None):
        classes = outputs["class_logits"].softmax(dim=2)[..., :-1]  # the last is "no object"
        scores = torch.einsum("bqk,bqhw->bkhw", classes, outputs["mask_logits"].sigmoid())
        return {"mask": scores.argmax(dim=1).to(torch.uint8), "class_logits": outputs["class_logits"]}


class QueryDecoder(nn.Module):
    strides = (4, 8, 16, 32)

    def __init__(self, channels, num_outputs, *, queries=5):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, queries, channels[0]))
        self.classes = nn.Linear(channels[0], num_outputs + 1)

    def forward(self, features, image):
        pooled = features[0].mean(dim=(2, 3))[:, None]
        queries = self.queries + pooled
        masks = torch.einsum("bqc,bchw->bqhw", queries, features[0])
        return {"class_logits": self.classes(queries), "mask_logits": masks}


KINDS = {
    "masked": (MaskedTask, MaskedDecoder, "test_patches"),
    "guided": (GuidedTask, GuidedDecoder, "resnet10t"),
    "hole": (HoleTask, HoleDecoder, "resnet10t"),
    "prompt": (PromptTask, PromptDecoder, "resnet10t"),
    "query": (QueryTask, QueryDecoder, "resnet10t"),
}


@contextmanager
def register():
    """The kinds as decoders "test_masked", ..., with their tasks and the encoder "test_patches", while it lasts."""
    tables = (ENCODERS.entries, DECODERS.entries, TASKS.entries)
    before = [dict(table) for table in tables]
    try:
        register_encoder(name="test_patches")(TinyPatches)
        for kind, (task, decoder, _) in KINDS.items():
            register_task(name=task.name)(task)
            register_decoder(name=f"test_{kind}", tasks=(task.name,))(decoder)
        yield
    finally:
        for table, old in zip(tables, before, strict=True):
            table.clear()
            table.update(old)
