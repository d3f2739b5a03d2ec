"""The decoders of segmentation_models_pytorch: equal to its models, at any size, under any encoder."""

import importlib
import inspect
import subprocess
import sys

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

import zoo
from zoo.checkpoints.convert import convert
from zoo.decoders.smp import KEYS
from zoo.errors import UserError
from zoo.registry import DECODERS

# ours: (its model, its decoder, the model's arguments, its encoder, the encoder of ours that is the same)
DILATED = {"name": "resnet18", "output_stride": 16}
PEERS = {
    "smp/deeplabv3plus": (smp.DeepLabV3Plus, "deeplabv3.decoder.DeepLabV3PlusDecoder", {}, "tu-resnet18", DILATED),
    "smp/fpn": (smp.FPN, "fpn.decoder.FPNDecoder", {}, "resnet18", "resnet18"),
    "smp/linknet": (smp.Linknet, "linknet.decoder.LinknetDecoder", {}, "resnet18", "resnet18"),
    "smp/manet": (smp.MAnet, "manet.decoder.MAnetDecoder", {}, "resnet18", "resnet18"),
    "smp/pan": (smp.PAN, "pan.decoder.PANDecoder", {"encoder_output_stride": 32}, "resnet18", "resnet18"),
    "smp/pspnet": (smp.PSPNet, "pspnet.decoder.PSPDecoder", {}, "resnet18", "resnet18"),
    "smp/segformer": (smp.Segformer, "segformer.decoder.SegformerDecoder", {}, "resnet18", "resnet18"),
    "smp/unetplusplus": (smp.UnetPlusPlus, "unetplusplus.decoder.UnetPlusPlusDecoder", {}, "resnet18", "resnet18"),
    "smp/upernet": (smp.UPerNet, "upernet.decoder.UPerNetDecoder", {}, "resnet18", "resnet18"),
}
EVERY = sorted(PEERS)
PLAIN = dict(num_classes=3, mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
IN_PAIRS = {"smp/deeplabv3plus", "smp/pan", "smp/upernet"}  # whose BatchNorm sees an image's mean


def stir(module: torch.nn.Module) -> None:
    """Statistics and scales that a mistake in a norm would show."""
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                torch.nn.init.uniform_(values, 0.5, 1.5)


def pair(name, encoder, ours, **arguments):
    """A model of segmentation_models_pytorch and ours with its weights."""
    torch.manual_seed(0)
    theirs = PEERS[name][0](encoder, encoder_weights=None, classes=3, **arguments).eval()
    stir(theirs)
    model = zoo.create_model(name, encoder=ours, **PLAIN).eval()
    expected = {key: value.shape for key, value in model.state_dict().items()}
    model.load_state_dict(convert(DECODERS.entries[name].keys or KEYS, theirs.state_dict(), expected))
    return theirs, model


def test_all_of_them_are_listed():
    assert zoo.list_decoders("smp/*") == EVERY
    assert all(DECODERS.entries[name].summary.endswith(".") for name in EVERY)


def test_listing_them_does_not_import_the_package():
    code = (
        "import sys, zoo; zoo.list_decoders(task='segmentation')\nprint('segmentation_models_pytorch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stdout.split() == ["False"], told.stderr


def test_without_the_package_its_installation_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    assert "smp/fpn" in zoo.list_decoders()
    with pytest.raises(UserError, match=r"not installed; pip install 'visionzoo\[smp\]'"):
        zoo.create_model("smp/fpn", encoder="resnet10t")


@pytest.mark.parametrize("name", EVERY)
def test_options_are_named_and_preset_as_in_segmentation_models_pytorch(name):
    model, path, *_ = PEERS[name]
    module, _, decoder = path.rpartition(".")
    home = importlib.import_module(f"segmentation_models_pytorch.decoders.{module}")
    theirs = inspect.signature(getattr(home, decoder)).parameters
    whole = inspect.signature(model).parameters
    ours = {
        p.name: p.default
        for p in inspect.signature(DECODERS.entries[name].build).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }
    assert list(ours) == [p for p in theirs if p not in ("encoder_channels", "encoder_depth", "n_blocks")]
    for option, default in ours.items():
        known = theirs[option].default
        if known is inspect.Parameter.empty:
            names = (option, f"decoder_{option}", f"encoder_{option}", option.replace("out", "decoder"))
            known = next(whole[n].default for n in names if n in whole)
        assert default == known, option


def test_weights_convert_by_name_but_for_pan_whose_dilation_they_do_not_tell():
    theirs = smp.FPN("resnet18", encoder_weights=None, classes=3).state_dict()
    model = zoo.create_model("smp/fpn", encoder="resnet18", num_classes=3)
    model.load_state_dict(zoo.convert_weights("smp/fpn", theirs, encoder="resnet18", num_classes=3))
    with pytest.raises(UserError, match="No rules turn the weights of 'smp/pan'"):
        zoo.convert_weights("smp/pan", {})


@pytest.mark.parametrize("name", EVERY)
def test_gives_what_segmentation_models_pytorch_gives_from_the_same_weights(name):
    _, _, arguments, encoder, ours = PEERS[name]
    theirs, model = pair(name, encoder, ours, **arguments)
    # its PAN refuses sides below 256
    for size in ((256, 256), (288, 320) if name == "smp/pan" else (64, 96)):
        image = torch.rand(2, 3, *size)
        with torch.no_grad():
            features = model.encoder(image)
            leading = [image] * (model.encoder.strides[0].bit_length() - 1)  # of strides 1, 2, ...
            expected = theirs.segmentation_head(theirs.decoder([*leading, *features]))
            assert torch.equal(model.decoder(features, image)["logits"], expected)
            torch.testing.assert_close(model(image)["logits"], theirs(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("encoder", ["convnext_atto", "densenet121", "tf_efficientnet_lite0"])
def test_weights_over_encoders_of_timm_convert(encoder):
    theirs, model = pair("smp/fpn", f"tu-{encoder}", encoder)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(image)["logits"], theirs(image), atol=1e-5, rtol=1e-5)


def test_a_head_for_whole_images_is_left_out():
    theirs = smp.UPerNet("resnet18", encoder_weights=None, aux_params={"classes": 4}).state_dict()
    assert any(key.startswith("classification_head.") for key in theirs)
    converted = zoo.convert_weights("smp/upernet", theirs, encoder="resnet18")
    assert converted.keys() == zoo.create_model("smp/upernet", encoder="resnet18").state_dict().keys()


def test_weights_of_another_dilation_are_refused():
    theirs = smp.DeepLabV3Plus("resnet18", encoder_weights=None).state_dict()
    with pytest.raises(UserError, match=r"unknown: encoder\.conv1\.weight"):
        zoo.convert_weights("smp/deeplabv3plus", theirs, encoder=DILATED)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_deeplab_stands_on_the_dilated_last_stage_or_on_the_map_of_its_stride(output_stride):
    options = {"name": "smp/deeplabv3plus", "output_stride": output_stride}
    dilated = {"name": "resnet18", "output_stride": output_stride}
    assert zoo.create_model(encoder=dilated, decoder=options).encoder.channels == (64, 512)
    plain = zoo.create_model(encoder="resnet18", decoder=options)
    assert plain.encoder.strides == (4, output_stride)
    assert plain.encoder.channels == (64, {8: 128, 16: 256}[output_stride])


@pytest.mark.parametrize("name", EVERY)
def test_starts_from_the_same_spread_of_weights_as_segmentation_models_pytorch(name):
    peer, _, arguments, encoder, ours = PEERS[name]
    theirs = peer(encoder, encoder_weights=None, **arguments)
    model = zoo.create_model(name, encoder=ours)
    for mine, other in ((model.decoder.net, theirs.decoder), (model.decoder.head, theirs.segmentation_head)):
        weights = dict(other.named_parameters())
        for key, parameter in mine.named_parameters():
            if parameter.numel() > 5000:
                assert parameter.std().item() == pytest.approx(weights[key].std().item(), rel=0.1), key
            if key.endswith("bias"):
                assert parameter.any() == weights[key].any()


def test_features_are_extended_by_their_last_cells_to_the_next_multiple():
    torch.manual_seed(0)
    decoder = zoo.create_model("smp/fpn", encoder="resnet10t").decoder.eval()
    strides = (4, 8, 16, 32)
    features = [torch.rand(1, 16 * s, -(-33 // s), -(-47 // s)) for s in strides]
    extended = [
        torch.from_numpy(np.pad(f, ((0, 0), (0, 0), (0, 64 // s - f.shape[2]), (0, 64 // s - f.shape[3])), "edge"))
        for f, s in zip(features, strides, strict=True)
    ]
    with torch.no_grad():
        logits = decoder(features, torch.rand(1, 3, 33, 47))["logits"]
        expected = decoder.head(decoder.net(extended))[..., :33, :47]
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)


def test_pan_takes_images_below_the_size_that_its_attention_needs():
    with pytest.raises(RuntimeError):
        smp.PAN("resnet18", encoder_weights=None).eval()(torch.rand(1, 3, 64, 96))
    model = zoo.create_model("smp/pan", encoder="resnet10t").eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 96))["logits"].shape == (1, 1, 64, 96)


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_of_one_trains_or_is_refused_with_the_reason(name):
    model = zoo.create_model(name, encoder="resnet10t")
    if name in IN_PAIRS:
        with pytest.raises(UserError, match="one image; train it with a batch_size of at least 2"):
            model(torch.rand(1, 3, 64, 64))
    else:
        assert model(torch.rand(1, 3, 64, 64))["logits"].isfinite().all()


def test_pspnet_takes_channels_that_are_no_multiple_of_four():
    build = DECODERS.entries["smp/pspnet"].build
    with torch.no_grad():
        logits = build((61,), 2).eval()([torch.rand(1, 61, 5, 6)], torch.rand(1, 3, 33, 47))["logits"]
    assert logits.shape == (1, 2, 33, 47)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("smp/fpn", {"pyramid_chanels": 1}, "did you mean 'pyramid_channels'"),
        ("smp/fpn", {"interpolation_mode": "cubic"}, "'cubic'; choose one of nearest, bilinear"),
        ("smp/fpn", {"merge_policy": "max"}, "FPNDecoder refuses .*got max"),
        ("smp/fpn", {"segmentation_channels": 100}, "FPNDecoder refuses .*100.* must be divisible"),
        ("smp/manet", {"decoder_channels": [64, 32]}, r"decoder_channels \[64, 32\]; give 5"),
        ("smp/unetplusplus", {"decoder_channels": 64}, "decoder_channels 64; give 5"),
        ("smp/unetplusplus", {"attention_type": "se"}, "Attention se is not implemented"),
        ("smp/linknet", {"use_norm": {"type": "layernorm"}}, "does not run with use_norm"),
        ("smp/linknet", {"use_norm": "group"}, "Unrecognized normalization"),
        ("smp/deeplabv3plus", {"output_stride": 32}, "no output_stride 32; choose 8 or 16"),
        ("smp/deeplabv3plus", {"atrous_rates": [6, 12]}, "DeepLabV3PlusDecoder refuses"),
    ],
)
def test_a_wrong_option_is_answered_with_a_sentence(name, options, told):
    with pytest.raises(UserError, match=told):
        zoo.create_model(name, encoder="resnet10t", decoder=options)
