"""The folded copy is equal, and is only made where it is."""

import pytest
import torch
from torch import nn

import zoo
from zoo.inference.folding import faster


@pytest.mark.parametrize("encoder", ["resnet10t", "tf_efficientnet_lite0", "convnext_atto"])
def test_folded_copies_are_equal_and_have_no_norm_left_behind_a_convolution(encoder):
    torch.manual_seed(0)
    model = zoo.create_model("unet", encoder=encoder, num_classes=2)
    model(torch.rand(4, 3, 64, 64))
    model.eval()
    image = torch.rand(1, 3, 70, 90)
    folded = faster(model, torch.rand(1, 3, 64, 96))
    with torch.inference_mode():
        a, b = model(image)["logits"], folded(image)["logits"]
    assert (a - b).abs().max() <= 1e-5 * max(1, a.abs().max())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


class Shared(nn.Module):
    """A convolution whose output is used beside its norm: folding would change the answer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        nn.init.constant_(self.norm.running_mean, 2.0)

    def forward(self, x):
        x = self.conv(x)
        return {"out": self.norm(x) + x}


def test_a_copy_that_would_differ_is_not_folded():
    model = Shared().eval()
    image = torch.rand(1, 3, 8, 8)
    copy = faster(model, image)
    torch.testing.assert_close(copy(image)["out"], model(image)["out"])
    assert isinstance(copy.norm, nn.BatchNorm2d)
