"""U-Net's decoder: equal to segmentation_models_pytorch's, at any size."""

import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.checkpoints.convert import convert
from zoo.decoders import Unet
from zoo.decoders.unet import KEYS
from zoo.errors import UserError

CHANNELS = (8, 8, 16, 24, 32)
UPSAMPLES = ("nearest", "bilinear", "transposed")


def pyramid(height: int, width: int, channels=CHANNELS, batch: int = 1):
    image = torch.rand(batch, 3, height, width)
    return [
        torch.rand(batch, c, -(-height // s), -(-width // s)) for c, s in zip(channels, Unet.strides, strict=True)
    ], image


def stir(module: torch.nn.Module) -> None:
    """Statistics and scales that a mistake in a norm would show."""
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                torch.nn.init.uniform_(values, 0.5, 1.5)


@pytest.mark.parametrize("encoder", ["resnet34", "tu-resnet34"])
def test_gives_what_segmentation_models_pytorch_gives_from_the_same_weights(encoder):
    torch.manual_seed(0)
    theirs = smp.Unet(encoder, encoder_weights=None, classes=3).eval()
    stir(theirs.decoder)
    ours = Unet(theirs.encoder.out_channels[1:], 3).eval()
    official = {k: v for k, v in theirs.state_dict().items() if not k.startswith("encoder.")}
    shapes = {f"decoder.{k}": tuple(v.shape) for k, v in ours.state_dict().items()}
    ours.load_state_dict({k.removeprefix("decoder."): v for k, v in convert(KEYS, official, shapes).items()})
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        features = theirs.encoder(image)
        expected = theirs.segmentation_head(theirs.decoder(features))
        torch.testing.assert_close(ours(features[1:], image)["logits"], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("encoder", ["resnet34", "tu-resnet34"])
def test_encoder_keys_of_segmentation_models_pytorch_become_timms(encoder):
    import timm

    theirs = smp.Unet(encoder, encoder_weights=None).state_dict()
    net = timm.create_model("resnet34", num_classes=0).state_dict()
    encoder_state = {k: v for k, v in theirs.items() if k.startswith("encoder.")}
    convert(KEYS, encoder_state, {f"encoder.net.{k}": tuple(v.shape) for k, v in net.items()})


def test_trains_like_segmentation_models_pytorch_from_the_same_start():
    torch.manual_seed(0)
    theirs = smp.decoders.unet.decoder.UnetDecoder((3, *CHANNELS), (256, 128, 64, 32, 16))
    ours = Unet(CHANNELS, 1)
    for conv, name in ((ours.conv1, "conv1"), (ours.conv2, "conv2")):
        for mine, block in zip(conv, theirs.blocks, strict=True):
            mine.load_state_dict(getattr(block, name).state_dict())
    features, image = pyramid(32, 64, batch=2)
    ours(features, image)["logits"].square().mean().backward()
    ours.head(theirs([image, *features])).square().mean().backward()
    for conv, name in ((ours.conv1, "conv1"), (ours.conv2, "conv2")):
        for mine, block in zip(conv, theirs.blocks, strict=True):
            for own, other in zip(mine.parameters(), getattr(block, name).parameters(), strict=True):
                torch.testing.assert_close(own.grad, other.grad, atol=1e-5, rtol=1e-4)


def test_starts_from_the_same_spread_of_weights_as_segmentation_models_pytorch():
    torch.manual_seed(0)
    theirs, ours = smp.Unet("resnet18", encoder_weights=None), Unet((64, 64, 128, 256, 512), 1)
    for conv, other in zip(ours.conv1, theirs.decoder.blocks, strict=True):
        assert conv[0].weight.abs().max().item() == pytest.approx(other.conv1[0].weight.abs().max().item(), rel=0.05)
    assert ours.head.weight.abs().max().item() == pytest.approx(
        theirs.segmentation_head[0].weight.abs().max().item(), rel=0.1
    )
    assert not ours.head.bias.any()


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 80), width=st.integers(1, 80), upsample=st.sampled_from(UPSAMPLES))
def test_answers_at_the_image_size_whatever_it_is(height, width, upsample):
    decoder = Unet(CHANNELS, 2, widths=(8, 8, 8, 8, 8), upsample=upsample).eval()
    with torch.no_grad():
        logits = decoder(*pyramid(height, width))["logits"]
    assert logits.shape == (1, 2, height, width)
    assert logits.isfinite().all()


def test_bilinear_differs_from_nearest():
    torch.manual_seed(0)
    decoder = Unet(CHANNELS, 1).eval()
    inputs = pyramid(33, 47)
    nearest = decoder(*inputs)["logits"]
    decoder.upsample = "bilinear"
    assert not torch.allclose(nearest, decoder(*inputs)["logits"], atol=1e-3)


def test_transposed_convolutions_double_each_side_and_are_cropped():
    torch.manual_seed(0)
    decoder = Unet(CHANNELS, 1, widths=(8, 8, 8, 8, 8), upsample="transposed").eval()
    features, image = pyramid(33, 47)
    seen = []
    for up, conv1 in zip(decoder.up, decoder.conv1, strict=True):
        up.register_forward_hook(lambda _m, args, out: seen.append((args[0].shape[-2:], out)))
        conv1.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    with torch.no_grad():
        decoder(features, image)
    for (before, doubled), joined, partner in zip(seen[::2], seen[1::2], [*features[-2::-1], image], strict=True):
        assert list(doubled.shape) == [1, 8, 2 * before[0], 2 * before[1]]
        height, width = partner.shape[-2:]
        assert torch.equal(joined[:, :8], doubled[..., :height, :width])


def test_transposed_convolutions_learn_and_leave_the_default_its_keys():
    decoder = Unet(CHANNELS, 1, widths=(8, 8, 8, 8, 8), upsample="transposed")
    decoder(*pyramid(33, 47, batch=2))["logits"].square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in decoder.up.parameters())
    default = Unet(CHANNELS, 1, widths=(8, 8, 8, 8, 8)).state_dict()
    assert {k for k in decoder.state_dict() if not k.startswith("up.")} == set(default)


@pytest.mark.parametrize("widths", [(64, 32, 16), (256, 128, 64, 32, 16, 8)])
def test_a_wrong_number_of_widths_is_refused(widths):
    with pytest.raises(UserError, match=f"{len(widths)} widths .* for 5 feature levels"):
        Unet(CHANNELS, 1, widths=widths)


def test_an_unknown_upsample_is_refused():
    with pytest.raises(UserError, match="'bicubic'; choose 'nearest', 'bilinear' or 'transposed'"):
        Unet(CHANNELS, 1, upsample="bicubic")


@pytest.mark.parametrize("upsample", ["bilinear", "transposed"])
def test_exports_and_compiles_without_a_graph_break(upsample):
    torch.manual_seed(0)
    decoder = Unet(CHANNELS, 1, widths=(8, 8, 8, 8, 8), upsample=upsample).eval()
    inputs = pyramid(33, 47)
    with torch.no_grad():
        expected = decoder(*inputs)["logits"]
        torch.testing.assert_close(torch.export.export(decoder, inputs).module()(*inputs)["logits"], expected)
        compiled = torch.compile(decoder, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*inputs)["logits"], expected)
