"""WAU-Net's decoder: what a step is, any size, any pyramid, every option."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from zoo.attention.upsample import AttentionUpsample
from zoo.decoders import WindowUpsample
from zoo.decoders.window_upsample import wau_unet
from zoo.errors import UserError

CHANNELS = (8, 8, 16, 24, 32)
WIDTHS = (32, 16, 16, 8, 8)
STRIDES = (2, 4, 8, 16, 32)


def pyramid(height: int, width: int, batch: int = 1, channels=CHANNELS, strides=STRIDES) -> tuple[list[Tensor], Tensor]:
    features = [torch.randn(batch, c, -(-height // s), -(-width // s)) for c, s in zip(channels, strides, strict=True)]
    return features, torch.randn(batch, 3, height, width)


def small(**options) -> WindowUpsample:
    """A small decoder whose attention has a say and whose norms are not at rest."""
    torch.manual_seed(0)
    options = {"widths": WIDTHS, "windows": 3, "zero_init": False, **options}
    decoder = WindowUpsample(CHANNELS, 2, **options)
    for norm in decoder.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.weight, norm.bias, norm.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
    return decoder.eval()


OPTIONS = [
    dict(),
    dict(depth=2),
    dict(query="deep", depth=2, windows=2),
    dict(windows=None, position="none"),
    dict(windows=(16, 2, 0, 3), heads=(4, 2, 1, 1), mlp_ratio=2),
    dict(shift=False, depth=2, position="none"),
]


@pytest.mark.parametrize("options", OPTIONS)
@settings(max_examples=5, deadline=None)
@given(height=st.integers(1, 100), width=st.integers(1, 100))
def test_answers_at_the_image_size_whatever_it_is(options, height, width):
    with torch.no_grad():
        logits = small(**options)(*pyramid(height, width))["logits"]
    assert logits.shape == (1, 2, height, width)
    assert logits.isfinite().all()


def test_an_image_one_pixel_wide_is_answered():
    with torch.no_grad():
        for height, width in ((1, 1), (1, 70), (70, 1)):
            assert small(depth=2)(*pyramid(height, width))["logits"].shape == (1, 2, height, width)


def test_it_is_a_unet_whose_steps_are_the_upsampler():
    decoder = small(windows=(3, 3, 0, 3)).eval()
    features, image = pyramid(33, 47)
    with torch.no_grad():
        x = features[-1]
        for level, skip in enumerate([*features[-2::-1], None]):
            if level in (2, 4):  # switched off, and to the image
                x = F.interpolate(x, (image if skip is None else skip).shape[-2:], mode="bilinear")
            else:
                assert isinstance(decoder.ups[level], AttentionUpsample)
                x = decoder.ups[level](x, skip)
            x = x if skip is None else torch.cat([x, skip], dim=1)
            x = decoder.conv2[level](decoder.conv1[level](x).relu()).relu()
        torch.testing.assert_close(decoder(features, image)["logits"], decoder.head(x))


def test_windows_as_large_as_the_map_are_one_window():
    inputs = pyramid(96, 64)
    large, larger = small(windows=24), small(windows=26)
    with torch.no_grad():
        expected = large(*inputs)["logits"]
        state = large.state_dict()
        for key in [key for key in state if key.endswith("bias_table")]:  # the same offsets in a table of more
            state[key] = F.pad(state[key], (4, 4, 4, 4))
        larger.load_state_dict(state)
        torch.testing.assert_close(larger(*inputs)["logits"], expected)


def test_a_new_decoder_starts_as_interpolation_and_all_of_it_learns():
    decoder = small(zero_init=True).train()
    decoder(*pyramid(70, 50, batch=2))["logits"].square().mean().backward()
    for up in decoder.ups[:-1]:
        assert not up.project.weight.any()
        assert up.project.weight.grad.any()
    nowhere = [name for name, p in decoder.named_parameters() if p.grad is None]
    assert nowhere == []


@pytest.mark.parametrize("query", ["skip", "deep"])
def test_gradients_reach_every_parameter(query):
    decoder = small(query=query, depth=2, windows=2).train()
    decoder(*pyramid(130, 130, batch=2))["logits"].square().mean().backward()
    assert not [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]


def test_takes_another_pyramid():
    channels, strides = (8, 16, 32), (4, 16, 32)
    decoder = WindowUpsample(channels, 3, strides=strides, widths=(16, 8, 8), windows=(4, 2))
    assert [up.scale for up in decoder.ups[:-1]] == [(2, 2), (4, 4)]
    logits = decoder(*pyramid(70, 45, batch=2, channels=channels, strides=strides))["logits"]
    assert logits.shape == (2, 3, 70, 45)


def test_is_created_under_an_encoder_with_its_options_in_the_config():
    decoder = dict(name="window_upsample", strides=[4, 8, 16, 32], widths=[32, 16, 16, 8], windows=4, query="deep")
    model = zoo.create_model(encoder="resnet10t", decoder=decoder, num_classes=3).eval()
    image = torch.rand(1, 3, 61, 35)
    with torch.no_grad():
        expected = model(image)["logits"]
        assert expected.shape == (1, 3, 61, 35)
        again = zoo.create_model(**model.config).eval()
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(image)["logits"], expected)
    with pytest.raises(UserError, match=r"takes images \(B, 3, H, W\)"):
        model(torch.rand(1, 3, 8, 61, 35))


def test_wau_unet_is_resnet_50_with_windows_of_7():
    assert wau_unet()["encoder"] == "resnet50"
    with torch.device("meta"):
        model = zoo.create_model("wau_unet")
    ups = model.decoder.ups[:-1]
    assert [up.layers[0].attention.heads for up in ups] == [8, 4, 2, 1]
    assert [up.layers[0].attention.bias_table.shape[1:] for up in ups] == [(26, 26)] * 4
    assert [sum(p.numel() for p in up.parameters()) for up in ups] == [2_172_960, 349_200, 88_584, 20_740]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(widths=(8, 8)), "2 widths .* for 5 feature levels"),
        (dict(windows=(7, 7)), r"2 windows \(7, 7\) for 4 steps"),
        (dict(heads=(1, 1, 1)), r"3 heads \(1, 1, 1\) for 4 steps"),
        (dict(heads=3), "32 channels can't be shared among 3 heads"),
        (dict(heads=0), "32 channels can't be shared among 0 heads"),
        (dict(query="both"), "no query 'both'"),
        (dict(position="learned"), "'learned'; choose 'relative' or 'none'"),
        (dict(windows=None), "needs a window"),
        (dict(windows=-1), r"window of \(-1, -1\) cells"),
        (dict(depth=0), "depth is 0"),
        (dict(strides=(4, 6, 8, 16, 32)), r"strides \(4, 6, 8, 16, 32\)"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        small(**options)


def test_bfloat16_is_finite_and_near():
    decoder, inputs = small(depth=2), pyramid(65, 50)
    with torch.no_grad():
        exact = decoder(*inputs)["logits"]
        assert exact.std() > 0.1
        with torch.autocast("cpu", torch.bfloat16):
            got = decoder(*inputs)["logits"].float()
        assert (got - exact).abs().max() < 0.05 * exact.abs().max()
        halves = [f.bfloat16() for f in inputs[0]], inputs[1].bfloat16()
        assert decoder.bfloat16()(*halves)["logits"].isfinite().all()


@pytest.mark.parametrize("query", ["skip", "deep"])
def test_compiles_without_a_graph_break(query):
    decoder, inputs = small(query=query, windows=8), pyramid(33, 47)
    with torch.no_grad():
        compiled = torch.compile(decoder, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*inputs)["logits"], decoder(*inputs)["logits"])


def test_exports_at_one_size_with_any_batch():
    decoder, inputs = small(windows=8), pyramid(33, 47, batch=2)  # four windows in the last step
    batch = {0: torch.export.Dim("batch", min=1)}
    with torch.no_grad():
        program = torch.export.export(decoder, inputs, dynamic_shapes=([batch] * 5, batch)).module()
        for count in (1, 3):
            inputs = pyramid(33, 47, batch=count)
            torch.testing.assert_close(program(*inputs)["logits"], decoder(*inputs)["logits"])


@pytest.mark.slow
def test_goes_to_onnx_at_one_size(tmp_path):
    model = zoo.create_model("window_upsample", encoder="resnet10t").eval()
    facts = zoo.export(model, tmp_path / "model.onnx", size=(64, 64))
    assert max(facts["check"]["largest"].values()) <= 1e-4
