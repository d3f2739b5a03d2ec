"""The front door of the encoders: registered parts, names, and weights that do not fit."""

import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from zoo import registry
from zoo.encoders import create_encoder, list_encoders
from zoo.errors import UserError


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry.ENCODERS, "entries", dict(registry.ENCODERS.entries))

    @registry.register_encoder(name="halves")
    class Halves(nn.Module):
        """Average pooling alone."""

        def __init__(self, in_channels, strides, *, gain=1.0):
            super().__init__()
            self.channels, self.strides, self.gain = (in_channels,) * len(strides), strides, gain

        def forward(self, image):
            return [nn.functional.avg_pool2d(image, s, ceil_mode=True) * self.gain for s in self.strides]


def test_importing_the_package_does_not_import_timm():
    code = "import zoo.encoders, sys; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("registered")
def test_a_registered_encoder_comes_first_and_gets_its_options():
    encoder = create_encoder({"name": "halves", "gain": 2.0}, in_channels=2, strides=(2, 4))
    assert encoder.gain == 2.0
    assert encoder.channels == (2, 2)
    assert (encoder.mean, encoder.std) == ((0.0, 0.0), (1.0, 1.0))
    assert list_encoders()[0] == "halves"
    with pytest.raises(UserError, match=r"no option 'gian'.*'gain'"):
        create_encoder({"name": "halves", "gian": 2.0})


def test_all_of_timm_is_listed():
    assert "resnet18" in list_encoders()
    assert len(list_encoders()) >= len(timm.list_models())


def test_a_spec_without_a_name_and_an_image_without_channels_are_refused():
    with pytest.raises(UserError, match="has no name"):
        create_encoder({"img_size": 3})
    with pytest.raises(UserError, match="in_channels is 0"):
        create_encoder({"name": "resnet18"}, in_channels=0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_classification_checkpoint_loads_without_its_head(tmp_path, suffix):
    source = timm.create_model("resnet18", num_classes=7)
    file = tmp_path / f"net{suffix}"
    state = source.state_dict()
    save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    encoder = create_encoder({"name": "resnet18"}, strides=(4, 8), weights=str(file))
    for key, value in encoder.net.state_dict().items():
        assert torch.equal(value, state[key])


def test_an_encoders_own_weights_load_again(tmp_path):
    first = create_encoder({"name": "convnext_atto"})
    save_file(first.net.state_dict(), tmp_path / "own.safetensors")
    second = create_encoder({"name": "convnext_atto"}, weights=str(tmp_path / "own.safetensors"))
    for key, value in second.net.state_dict().items():
        assert torch.equal(value, first.net.state_dict()[key])


@pytest.mark.parametrize(("channels", "expected"), [(1, lambda w: w.sum(1, keepdim=True)), (3, lambda w: w)])
def test_rgb_weights_are_carried_to_other_channels(tmp_path, channels, expected):
    state = timm.create_model("resnet18").state_dict()
    save_file(state, tmp_path / "rgb.safetensors")
    encoder = create_encoder(
        {"name": "resnet18"}, in_channels=channels, strides=(2,), weights=str(tmp_path / "rgb.safetensors")
    )
    torch.testing.assert_close(encoder.net.conv1.weight.data, expected(state["conv1.weight"]))


def test_what_does_not_fit_is_listed(tmp_path):
    state = timm.create_model("resnet18").state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["layer1.0.conv1.weight"]
    state["bn1.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"extra\.weight.*layer1\.0\.conv1\.weight.*bn1\.weight"):
        create_encoder({"name": "resnet18"}, weights=str(tmp_path / "bad.safetensors"))
    with pytest.raises(UserError, match="do not fit"):
        create_encoder({"name": "swin_tiny_patch4_window7_224"}, weights=str(tmp_path / "bad.safetensors"))


def test_files_that_are_not_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match="no file of weights"):
        create_encoder({"name": "resnet18"}, weights=str(tmp_path / "none.pth"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(UserError, match="cannot be read as weights"):
        create_encoder({"name": "resnet18"}, weights=str(tmp_path / "cut.safetensors"))
    torch.save({"state_dict": nn.Linear(1, 1)}, tmp_path / "code.pth")  # a pickled object, not tensors
    with pytest.raises(UserError, match="never run"):
        create_encoder({"name": "resnet18"}, weights=str(tmp_path / "code.pth"))


def test_an_unknown_tag_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"no weights 'a1_in2k'.*'a1_in1k'"):
        create_encoder({"name": "resnet18"}, weights="a1_in2k")
    with pytest.raises(UserError, match="no weights 'a1_in2k'"):
        create_encoder({"name": "resnet18.a1_in2k"})


def test_without_a_network_the_way_out_is_told(monkeypatch):
    build = timm.create_model

    def offline(name, pretrained=False, **arguments):
        if pretrained:
            raise OSError("no route to host")
        return build(name, **arguments)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"'resnet18'.*no route to host.*give a file"):
        create_encoder({"name": "resnet18"}, weights=True)
    with pytest.raises(UserError, match=r"'resnet18\.a1_in1k'"):
        create_encoder({"name": "resnet18"}, weights="a1_in1k")
