"""Parts by name: registration, refusal of doubles, plugins."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import zoo
from zoo import registry
from zoo.errors import UserError


@pytest.fixture
def clean(monkeypatch):
    """Registries as they were before the test."""
    import zoo.create  # noqa: F401  (the built-in parts are there)

    for kind in (registry.ENCODERS, registry.DECODERS, registry.MODELS, registry.TASKS):
        monkeypatch.setattr(kind, "entries", dict(kind.entries))


class Point(nn.Module):
    """One 1x1 convolution on the coarsest level.

    A test's decoder.
    """

    strides = (32,)

    def __init__(self, channels, num_outputs, *, bias: bool = True):
        super().__init__()
        self.head = nn.Conv2d(channels[0], num_outputs, kernel_size=1, bias=bias)

    def forward(self, features, image):
        return {"logits": self.head(features[0])}


class Pool(nn.Module):
    """A test's encoder: the image, averaged."""

    def __init__(self, in_channels, strides):
        super().__init__()
        self.channels, self.strides = (in_channels,) * len(strides), strides
        self.mean, self.std = (0.0,) * in_channels, (1.0,) * in_channels

    def forward(self, image):
        return [nn.functional.avg_pool2d(image, s, ceil_mode=True) for s in self.strides]


@pytest.mark.usefixtures("clean")
def test_a_registered_decoder_is_a_model_under_any_encoder():
    zoo.register_decoder(Point)
    zoo.register_encoder(name="pool")(Pool)
    model = zoo.create_model("point", encoder="pool", num_classes=2)
    assert model.eval()(torch.rand(1, 3, 40, 50))["logits"].shape == (1, 2, 40, 50)
    assert model.config["decoder"] == {"name": "point", "bias": True}
    assert "pool" in zoo.list_encoders("po*")
    assert registry.DECODERS.find("point").summary == "One 1x1 convolution on the coarsest level."


@pytest.mark.usefixtures("clean")
def test_a_registered_model_fills_in_its_keys():
    zoo.register_decoder(Point)

    @zoo.register_model(task="segmentation", paper="none", licence="CC0")
    def spot():
        """A test's model."""
        return dict(encoder="resnet10t", decoder=dict(name="point", bias=False), num_classes=3)

    assert zoo.create_model("spot", decoder={"bias": True}).config["decoder"] == {"name": "point", "bias": True}
    assert zoo.list_models("spot") == ["spot"]


@pytest.mark.usefixtures("clean")
def test_names_are_given_once():
    zoo.register_decoder(Point)
    zoo.register_decoder(Point)  # a notebook's cell, run again
    for registering in (zoo.register_decoder(name="point"), zoo.register_model(task="segmentation", name="point")):
        with pytest.raises(UserError, match="'point' is registered already"):
            registering(Pool)


@pytest.mark.usefixtures("clean")
def test_an_option_without_a_default_must_be_given():
    class Queries(Point):
        def __init__(self, channels, num_outputs, *, queries: int):
            super().__init__(channels, num_outputs)

    zoo.register_decoder(name="queries")(Queries)
    with pytest.raises(UserError, match="'queries' needs the option 'queries'"):
        zoo.create_model("queries", encoder="resnet10t")
    model = zoo.create_model("queries", encoder="resnet10t", decoder={"queries": 3})
    assert model.config["decoder"] == {"name": "queries", "queries": 3}


def test_built_in_parts_have_their_names_before_anyone_else():
    code = "import zoo\ntry: zoo.register_decoder(name='unet')(dict)\nexcept zoo.UserError as e: print(e)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "'unet' is registered already" in told.stdout, told.stderr


@pytest.mark.usefixtures("clean")
def test_a_decoder_of_another_task_is_refused():
    zoo.register_decoder(tasks=("matting",))(Point)
    with pytest.raises(UserError, match="does not serve the task 'segmentation'"):
        zoo.create_model("point", encoder="resnet10t")


@pytest.mark.usefixtures("clean")
def test_plugins_register_through_entry_points(monkeypatch):
    class EntryPoint:
        def load(self):
            return lambda: zoo.register_decoder(name="from_plugin")(Point)

    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint()] if group == "zoo.plugins" else [])
    registry.load_plugins.cache_clear()
    assert "from_plugin" in zoo.list_decoders()


def test_a_plugin_that_does_not_load_is_named_and_left_out(monkeypatch):
    class Broken:
        name = "broken"

        def load(self):
            raise ImportError("no such module")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Broken()])
    registry.load_plugins.cache_clear()
    with pytest.warns(UserWarning, match="'broken' does not load: ImportError"):
        assert "unet" in zoo.list_decoders()
