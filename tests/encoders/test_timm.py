"""One architecture of every kind that timm has: sizes, channels, gradients, keys, and timm's own features."""

import pytest
import timm
import torch

from zoo.encoders import create_encoder
from zoo.encoders.pyramid import evenly, nearest_strides
from zoo.encoders.timm import plan
from zoo.errors import UserError

KINDS = {
    "resnet18": "free",  # convolutional, with a stride-2 map
    "convnext_atto": "free",  # rounds down, so its maps are stretched; no stride-2 map
    "tf_efficientnet_lite0": "free",
    "swin_tiny_patch4_window7_224": "pad",  # hierarchical transformer
    "vit_tiny_patch16_224": "pad",
    "vit_small_patch14_dinov2": "pad",
    "vit_tiny_r_s16_p8_224": "free",  # hybrid: a convolutional stem under a transformer
    "levit_128s": "fixed",  # strides 16, 32 and 56 (it declares 64)
    "pit_ti_224": "fixed",
    "shvit_s1": "free",  # strides 16, 32 and 64
    "crossvit_tiny_240": "fixed",  # resizes by itself; strides 12 and 17
}
SMALLER = {  # shallower where the width is not the point
    "swin_tiny_patch4_window7_224": {"depths": [1, 1, 2, 1]},
    "vit_small_patch14_dinov2": {"depth": 4},
    "vit_tiny_patch16_224": {"depth": 6},
}
SIZES = [(1, 1), (20, 20), (1, 200), (97, 130)]
ALL = (2, 4, 8, 16, 32)


def encoder(name, in_channels=3, strides=ALL, **options):
    torch.manual_seed(0)
    return create_encoder({"name": name, **SMALLER.get(name, {}), **options}, in_channels=in_channels, strides=strides)


@pytest.mark.parametrize("name", KINDS)
def test_any_image_size_gives_every_level_at_exactly_its_size(name):
    net = encoder(name).eval()
    assert net.plan.kind == KINDS[name]
    assert net.strides == ALL
    for height, width in SIZES:
        with torch.no_grad():
            features = net(torch.rand(1, 3, height, width))
        sizes = [tuple(f.shape) for f in features]
        assert sizes == [(1, c, -(-height // s), -(-width // s)) for c, s in zip(net.channels, ALL, strict=True)]
        assert all(f.isfinite().all() for f in features)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_the_size_of_a_photograph_that_nothing_divides(name):
    net = encoder(name).eval()
    with torch.no_grad():
        sizes = [tuple(f.shape[-2:]) for f in net(torch.rand(1, 3, 250, 333))]
    assert sizes == [(125, 167), (63, 84), (32, 42), (16, 21), (8, 11)]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("strides", [ALL, (8, 16)])
def test_every_trainable_parameter_gets_a_gradient(name, strides):
    net = encoder(name, strides=strides).train()
    sum(f.square().mean() for f in net(torch.rand(2, 3, 64, 96))).backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", KINDS)
def test_keys_are_those_of_timms_classification_checkpoint(name):
    ours = encoder(name).net.state_dict()
    with torch.device("meta"):
        theirs = timm.create_model(name, **SMALLER.get(name, {})).state_dict()
    assert {k: v.shape for k, v in ours.items()}.items() <= {k: v.shape for k, v in theirs.items()}.items()
    head = [k for k in theirs if k not in ours]
    assert head
    assert all(k.startswith(("head", "fc", "classifier", "norm", "conv_head", "bn2")) for k in head)


def test_features_are_timms_own_where_the_size_fits():
    ours = encoder("resnet18").eval()
    theirs = timm.create_model("resnet18", features_only=True).eval()
    theirs.load_state_dict(ours.net.state_dict())
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(ours(image), theirs(image), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "shvit_s1"])
def test_levels_are_timms_maps_where_the_size_fits(name):
    ours = encoder(name, strides=(4, 8, 16, 32)).eval()
    theirs = timm.create_model(name, **SMALLER.get(name, {})).eval()
    theirs.load_state_dict(ours.net.state_dict(), strict=False)
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        maps = theirs.forward_intermediates(image, output_fmt="NCHW", intermediates_only=True)
        features = ours(image)
    for feature, stride in zip(features, ours.strides, strict=True):
        same = [m for m in maps if m.shape[-1] * stride == 224]
        if same:
            assert torch.equal(feature[:, : same[-1].shape[1]], same[-1])


def test_a_net_of_one_size_sees_the_image_resized_to_it():
    net = encoder("levit_128s", strides=(16, 32)).eval()
    assert net.plan.size == (224, 224)
    theirs = timm.create_model("levit_128s").eval()
    theirs.load_state_dict(net.net.state_dict(), strict=False)
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        maps = theirs.forward_intermediates(image, output_fmt="NCHW", intermediates_only=True)
        sixteen, thirty_two = net(image)
    torch.testing.assert_close(sixteen, maps[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(thirty_two[:, :256], maps[1], rtol=0, atol=1e-6)


def test_a_net_of_one_size_can_be_rebuilt_for_another():
    net = encoder("pit_ti_224", img_size=[160, 224]).eval()
    assert net.plan.size == (160, 224)
    with torch.no_grad():
        assert net(torch.rand(1, 3, 97, 130))[-1].shape[-2:] == (4, 5)


@pytest.mark.parametrize("name", ["levit_128s", "shvit_s1"])
def test_a_stage_deeper_than_stride_32_is_joined_to_it(name):
    whole, shallow = encoder(name, strides=(16, 32)), encoder(name, strides=(8, 16))
    assert whole.channels[1] == sum(whole.plan.tap_channels[1:])
    assert len(whole.plan.taps) == 3
    assert len(shallow.plan.taps) == 1  # a decoder that stops at 16 gets no tail, and no parameters of one


def test_only_the_stages_that_are_asked_for_are_kept():
    net = encoder("resnet18", strides=(4, 8))
    assert not any(key.startswith(("layer3", "layer4", "fc")) for key in net.net.state_dict())


def test_strides_that_a_net_has_no_map_of_are_stems_on_the_image():
    net = encoder("convnext_atto", strides=(1, 2, 4)).eval()
    assert set(net.stems) == {"1", "2"}
    with torch.no_grad():
        assert [tuple(f.shape[-2:]) for f in net(torch.rand(1, 3, 33, 50))] == [(33, 50), (17, 25), (9, 13)]
    assert not encoder("resnet18").stems


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "levit_128s"])
@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_image_channels(name, channels):
    net = encoder(name, in_channels=channels).eval()
    assert len(net.mean) == len(net.std) == channels
    with torch.no_grad():
        assert net(torch.rand(1, channels, 40, 50))[-1].shape[-2:] == (2, 2)


def test_a_net_made_for_three_channels_gets_a_convolution_before_it():
    net = encoder("csatv2", in_channels=5, strides=(8, 16)).eval()
    assert net.plan.net_channels == 3
    with torch.no_grad():
        assert net(torch.rand(1, 5, 64, 64))[0].shape[-2:] == (8, 8)


def test_statistics_are_the_backbones_averaged_for_grey_and_repeated_for_more():
    assert encoder("resnet18").mean == (0.485, 0.456, 0.406)
    assert encoder("resnet18", 5).std == (0.229, 0.224, 0.225, 0.229, 0.224)
    assert encoder("resnet18", 1).mean == pytest.approx((0.449,))
    assert encoder("tf_efficientnet_lite0").mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", ["resnet18", "levit_128s", "vit_tiny_patch16_224"])
def test_an_image_has_the_same_features_alone_and_in_a_batch(name):
    net = encoder(name).eval()
    images = torch.rand(3, 3, 50, 70)
    with torch.no_grad():
        together, again, alone = net(images), net(images), net(images[1:2])
    for a, b, c in zip(together, again, alone, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a[1:2], c, rtol=1e-4, atol=1e-5)


def test_asking_a_net_leaves_the_users_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    plan("resnet10t", (4, 8))
    assert torch.equal(torch.rand(1), expected)


def test_a_plan_is_found_once():
    assert plan("resnet18", ALL) is plan("resnet18", ALL)


def test_blocks_of_a_plain_transformer_are_taken_evenly_with_the_last():
    assert evenly(range(12)) == [2, 5, 8, 11]
    assert evenly(range(7)) == [0, 2, 4, 6]
    assert evenly(range(2)) == [0, 0, 0, 1]


def test_levels_take_the_nearest_stride_and_the_deepest_of_equals():
    assert nearest_strides([2, 4, 4, 8, 16, 32], (2, 4, 8, 16, 32)) == [(0,), (2,), (3,), (4,), (5,)]
    assert nearest_strides([16, 32, 56], (4, 32)) == [(0,), (1, 2)]
    assert nearest_strides([4, 8, 16], (1, 2, 4, 32)) == [(), (), (0,), (2,)]


def test_a_net_of_fewer_blocks_than_levels_gives_some_of_them_twice():
    net = create_encoder({"name": "vit_tiny_patch16_224", "depth": 2, "embed_dim": 32, "num_heads": 2})
    assert net.plan.levels == ((0,), (0,), (0,), (1,))
    assert [f.shape[1] for f in net(torch.rand(1, 3, 32, 32))] == [32] * 4


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "levit_128s"])
def test_exports_with_open_batch_height_and_width(name):
    net = encoder(name, **({"depth": 4} if name.startswith("vit") else {})).eval()
    dim = torch.export.Dim
    shapes = {0: dim("b", min=1, max=64), 2: dim("h", min=64, max=4096), 3: dim("w", min=64, max=4096)}
    program = torch.export.export(net, (torch.rand(2, 3, 131, 203),), dynamic_shapes=(shapes,)).module()
    for size in [(1, 3, 97, 130), (3, 3, 64, 96)]:
        image = torch.rand(*size)
        with torch.no_grad():
            for a, b in zip(program(image), net(image), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_unknown_names_and_options_are_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"no encoder 'resnet81'.*did you mean 'resnet"):
        encoder("resnet81")
    with pytest.raises(UserError, match=r"no option 'drop_path_rat'.*'drop_path_rate'"):
        create_encoder({"name": "convnext_atto", "drop_path_rat": 0.1})
    with pytest.raises(UserError, match="no option 'img_size'"):
        create_encoder({"name": "resnet18", "img_size": 64})
    with pytest.raises(UserError, match="sets 'in_chans' itself"):
        create_encoder({"name": "resnet18", "in_chans": 4})
