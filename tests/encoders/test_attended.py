"""MEDUSA in an encoder: nothing changes at the start, what a head does goes on into later stages, and nowhere else."""

import copy
import json

import pytest
import torch

import zoo
from zoo.encoders import create_encoder
from zoo.errors import UserError

LIGHT = {"name": "medusa", "widths": [4, 8], "body_size": 32, "context": 4, "width": 8}
# layouts: maps, channels last, tokens behind a class token, tokens of a net that rounds up, tokens at two scales
NETS = ["resnet18", "convnext_atto", "mambaout_femto", "vit_tiny_patch16_224", "xcit_nano_12_p16_224", "levit_128s"]


def create(name, **options):
    torch.manual_seed(0)
    attention = {**LIGHT, **options}
    return create_encoder({"name": name, "attention": attention}).eval()


@pytest.fixture(params=NETS)
def pair(request):
    torch.manual_seed(0)
    return create_encoder({"name": request.param}).eval(), create(request.param)


def test_a_new_encoder_equals_the_bare_one_bit_for_bit(pair):
    bare, ours = pair
    image = torch.randn(1, 3, 70, 101)
    with torch.no_grad():
        for expected, level in zip(bare(image), ours(image), strict=True):
            assert torch.equal(level, expected)
            assert torch.equal(torch.signbit(level), torch.signbit(expected))
        with torch.autocast("cpu", torch.bfloat16):
            for expected, level in zip(bare(image), ours(image), strict=True):
                assert level.dtype == expected.dtype
                assert torch.equal(level, expected)


def test_a_head_changes_its_level_and_later_ones_alone(pair):
    bare, ours = pair
    image = torch.randn(1, 3, 70, 101)
    with torch.no_grad():
        expected = bare(image)
        for index, tap in enumerate(ours.at):
            for head in ours.heads:
                torch.nn.init.zeros_(head.gamma)
            torch.nn.init.ones_(ours.heads[index].gamma)
            changed = [not torch.equal(a, b) for a, b in zip(ours(image), expected, strict=True)]
            assert changed == [max(taps) >= tap for taps in ours.trunk.plan.levels]


def test_on_the_pyramid_a_head_changes_its_own_level_alone():
    ours = create("resnet18", where="pyramid", levels=[8, 32])
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = ours(image)
        torch.nn.init.ones_(ours.heads[0].gamma)
        assert [torch.equal(a, b) for a, b in zip(ours(image), before, strict=True)] == [True, False, True, True]


def test_a_net_that_cannot_be_reached_inside_says_so_and_takes_heads_on_its_pyramid():
    for name in ("hrnet_w18_small", "coat_tiny"):
        with pytest.raises(UserError, match=f"cannot act inside '{name}' .*where: pyramid"):
            create(name)
    assert len(create("hrnet_w18_small", where="pyramid").heads) == 4


def test_a_copy_works_with_its_own_heads():
    ours = create("resnet18")
    image = torch.randn(1, 3, 64, 64)
    twin = copy.deepcopy(ours)
    with torch.no_grad():
        before = ours(image)
        torch.nn.init.ones_(twin.heads[0].gamma)
        assert torch.equal(ours(image)[0], before[0])
        assert not torch.equal(twin(image)[0], before[0])


def test_each_image_of_a_batch_is_answered_as_alone():
    ours = create("vit_tiny_patch16_224").double()
    for head in ours.heads:
        torch.nn.init.ones_(head.gamma)
    image = torch.randn(2, 3, 45, 60, dtype=torch.float64)
    with torch.no_grad():
        for both, one in zip(ours(image), ours(image[1:]), strict=True):
            torch.testing.assert_close(both[1:], one, rtol=0, atol=1e-10)


def test_a_model_with_medusa_trains_is_saved_and_comes_back(tmp_path):
    torch.manual_seed(0)
    encoder = {"name": "resnet10t", "attention": LIGHT}
    model = zoo.create_model("unet", encoder=encoder, num_classes=2)
    assert model.config["encoder"]["attention"] | LIGHT == model.config["encoder"]["attention"]
    assert json.loads(json.dumps(model.config)) == model.config
    image = torch.rand(2, 3, 64, 64)
    model(image)["logits"].square().mean().backward()
    assert all(head.gamma.grad.abs().max() > 0 for head in model.encoder.heads)
    for head in model.encoder.heads:
        torch.nn.init.ones_(head.gamma)
    model.eval().save(tmp_path)
    again = zoo.load_model(tmp_path)
    torch.testing.assert_close(again(image)["logits"], model(image)["logits"], rtol=0, atol=0)
    fast = model.predict(image[0])
    torch.testing.assert_close(
        torch.from_numpy(fast.probabilities), model.answer(image[:1])["probabilities"][0].detach(), rtol=0, atol=1e-5
    )


def test_a_forward_that_is_interrupted_leaves_nothing_behind():
    model = zoo.create_model("unet", encoder={"name": "resnet10t", "attention": LIGHT})

    def stop(*_):
        raise KeyboardInterrupt

    hook = model.encoder.trunk.net.layer4.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        model(torch.rand(2, 3, 64, 64))
    hook.remove()
    assert model.eval().predict(torch.rand(3, 64, 64)).mask.shape == (64, 64)


def test_it_compiles_and_exports_with_open_sizes():
    ours = create("resnet18")
    for head in ours.heads:
        torch.nn.init.ones_(head.gamma)
    image = torch.randn(2, 3, 70, 101)
    dim = torch.export.Dim
    shapes = ({0: dim("b"), 2: dim("h", min=64, max=2048), 3: dim("w", min=64, max=2048)},)
    program = torch.export.export(ours, (image,), dynamic_shapes=shapes).module()
    other = torch.randn(1, 3, 129, 66)
    with torch.no_grad():
        compiled = torch.compile(ours, backend="eager", fullgraph=True)
        for expected, a in zip(ours(image), compiled(image), strict=True):
            torch.testing.assert_close(a, expected, rtol=1e-5, atol=1e-5)
        for expected, a in zip(ours(other), program(other), strict=True):
            torch.testing.assert_close(a, expected, rtol=1e-4, atol=1e-4)


def test_a_frozen_trunk_leaves_medusa_alone_to_learn():
    encoder = create_encoder({"name": "resnet10t", "frozen": "trunk", "attention": LIGHT}).train()
    free = {name.split(".")[0] for name, p in encoder.named_parameters() if p.requires_grad}
    assert free == {"body", "heads"}
    assert not any(module.training for module in encoder.trunk.net.modules())
    assert encoder.body.training
    sum(level.square().mean() for level in encoder(torch.rand(2, 3, 64, 64))).backward()
    assert all(head.gamma.grad.abs().max() > 0 for head in encoder.heads)
    whole = create_encoder({"name": "resnet10t", "frozen": True, "attention": LIGHT})
    assert not any(p.requires_grad for p in whole.parameters())


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"attention": "medusas"}, "no attention 'medusas' for an encoder - did you mean 'medusa'"),
        ({"attention": {"name": "medusa", "widhts": [8]}}, "no option 'widhts' - did you mean 'widths'"),
        ({"attention": {"name": "medusa", "where": "stem"}}, "where: trunk or pyramid, not 'stem'"),
        ({"attention": {"name": "medusa", "levels": [64]}}, "levels are \\[64\\], but the decoder asks for"),
        ({"frozen": "trunk"}, "'resnet10t' has none; add attention: medusa"),
    ],
)
def test_mistakes_are_told(spec, sentence):
    with pytest.raises(UserError, match=sentence):
        create_encoder({"name": "resnet10t", **spec})
