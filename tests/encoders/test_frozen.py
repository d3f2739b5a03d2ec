"""Frozen encoders: no gradients, always in eval mode, nothing kept for a backward pass; whole, and stage by stage."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import zoo
from zoo import registry
from zoo.encoders import create_encoder
from zoo.errors import UserError

TINY_VIT = {"name": "vit_tiny_patch16_224", "embed_dim": 24, "num_heads": 2, "depth": 8}
DROPS = {"drop_path_rate": 0.3, "proj_drop_rate": 0.3, "pos_drop_rate": 0.3, "patch_drop_rate": 0.0}


class Steps(nn.Module):
    """Four strided convolutions with norms and dropout, the features of each in `strides`."""

    def __init__(self, in_channels, strides, *, width=8):
        super().__init__()
        self.strides, self.channels = strides, (width,) * len(strides)
        self.noise = nn.Dropout(0.2)
        self.stem = nn.Conv2d(in_channels, width, 1)
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.Dropout(0.5))
            for _ in range(5)
        )
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image):
        x, features = self.stem(self.noise(image)), []
        for i, step in enumerate(self.steps):
            x = step(x)
            if i == 4:
                x = x * self.scale
            if 2 ** (i + 1) in self.strides:
                features.append(x)
        return features


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry.ENCODERS, "entries", dict(registry.ENCODERS.entries))
    registry.register_encoder(name="steps")(Steps)


def train_steps(model, count=2):
    """Some steps with AdamW on whatever asks for gradients, and the gradients of the last."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.rand(2, model.config["in_channels"], 64, 64))["logits"].square().mean().backward()
        optimizer.step()
    return {key for key, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def trained(encoder):
    return {key for key, p in encoder.named_parameters() if p.requires_grad}


def awake(module):
    return {key for key, part in module.named_modules() if part.training}


@pytest.mark.parametrize("encoder", [{"name": "resnet10t"}, TINY_VIT | DROPS, {"name": "steps"}])
def test_training_leaves_a_frozen_encoder_as_it_was(encoder):
    model = zoo.create_model(encoder={**encoder, "frozen": True}, decoder="linear")
    before = {key: value.clone() for key, value in model.encoder.state_dict().items()}
    model.eval().train()
    gradients = train_steps(model)
    assert gradients == {"decoder.norm.weight", "decoder.norm.bias", "decoder.head.weight", "decoder.head.bias"}
    assert all(torch.equal(value, before[key]) for key, value in model.encoder.state_dict().items())
    assert not trained(model.encoder)
    assert not awake(getattr(model.encoder, "net", model.encoder))
    assert model.decoder.training


@pytest.mark.parametrize("encoder", [{"name": "resnet10t"}, TINY_VIT | DROPS, {"name": "steps"}])
@pytest.mark.parametrize("frozen", [True, 2])
def test_answers_and_keys_are_the_unfrozen_models(encoder, frozen):
    torch.manual_seed(0)
    plain = create_encoder(encoder)
    torch.manual_seed(0)
    asleep = create_encoder({**encoder, "frozen": frozen})
    assert list(asleep.state_dict()) == list(plain.state_dict())
    image = torch.rand(2, 3, 50, 70)
    if frozen is True:
        asleep.train()
    else:
        asleep.eval()
    for one, other in zip(plain.eval()(image), asleep(image), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("encoder", [{"name": "resnet10t"}, TINY_VIT, {"name": "steps"}])
def test_a_frozen_encoder_keeps_no_activations(encoder):
    frozen = create_encoder({**encoder, "frozen": True}).train()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t):
        features = frozen(torch.rand(2, 3, 64, 64))
    assert not kept
    assert not any(f.requires_grad for f in features)


def test_what_stands_before_the_frozen_stages_end_is_not_kept():
    sizes = {}
    for stages in (False, 1, 2, 3):
        encoder, kept = create_encoder({"name": "resnet10t", "frozen": stages}), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()), lambda t: t):
            encoder(torch.rand(2, 3, 64, 64))
        sizes[stages] = sum(kept)
    assert sizes[False] > sizes[1] > sizes[2] > sizes[3] > 0


def test_stems_of_ours_train_beside_a_frozen_net():
    model = zoo.create_model(encoder={**TINY_VIT, "frozen": True}, decoder={"name": "unet", "widths": [8] * 5})
    gradients = train_steps(model)
    stems = {f"encoder.stems.{key}" for key, _ in model.encoder.stems.named_parameters()}
    assert stems
    assert stems <= gradients
    assert {key for key in gradients if key.startswith("encoder.")} == stems
    assert model.encoder.stems.training
    assert model.encoder.stems["2"][1].num_batches_tracked == 2


@pytest.mark.parametrize("frozen", [True, 2])
def test_a_convolution_of_ours_before_the_net_gets_its_gradient_through_it(frozen):
    encoder = create_encoder({"name": "csatv2", "frozen": frozen}, in_channels=5)
    image = torch.rand(2, 5, 64, 64)
    sum(f.square().mean() for f in encoder(image)).backward()
    assert encoder.adapt.weight.grad.abs().sum() > 0
    first = next(encoder.net.parameters())
    assert first.grad is None


def test_an_image_that_asks_for_its_gradient_gets_it():
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    create_encoder({"name": "resnet10t", "frozen": True})(image)[-1].sum().backward()
    assert image.grad.abs().sum() > 0


@pytest.mark.parametrize("decoder_strides", [(2, 4, 8, 16, 32), (4, 8, 16, 32), (8, 16, 32)])
@pytest.mark.parametrize(
    ("encoder", "names"),
    [
        ({"name": "resnet10t"}, [("conv1", "bn1", "layer1"), ("layer2",), ("layer3",), ("layer4",)]),
        ({"name": "convnext_atto"}, [("stem", "stages.0"), ("stages.1",), ("stages.2",), ("stages.3",)]),
        (
            TINY_VIT,
            [
                ("cls_token", "pos_embed", "patch_embed", "blocks.0", "blocks.1"),
                ("blocks.2", "blocks.3"),
                ("blocks.4", "blocks.5"),
                ("blocks.6", "blocks.7"),
            ],
        ),
    ],
)
def test_a_stage_of_a_timm_net_is_the_same_under_every_decoder(encoder, names, decoder_strides):
    for count in (1, 2, 3, 4):
        made = create_encoder({**encoder, "frozen": count}, strides=decoder_strides)
        asleep = tuple(f"{name}." for stage in names[:count] for name in stage)
        for key, parameter in made.net.named_parameters():
            assert parameter.requires_grad != f"{key}.".startswith(asleep), (count, key)
        for key, module in made.net.named_modules():
            if any(True for _ in module.parameters()) and key not in ("", "blocks", "stages"):
                assert module.training != f"{key}.".startswith(asleep), (count, key)


@pytest.mark.parametrize("encoder", [{"name": "resnet10t"}, TINY_VIT | DROPS, {"name": "steps"}])
def test_training_with_frozen_stages_moves_the_others_alone(encoder):
    model = zoo.create_model(encoder={**encoder, "frozen": 2}, decoder="linear")
    net = getattr(model.encoder, "net", model.encoder)
    parameters = dict(net.named_parameters())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    train_steps(model.eval().train())
    moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    asleep = {key for key, p in parameters.items() if not p.requires_grad}
    assert asleep
    assert asleep.isdisjoint(moved)
    assert set(parameters) - asleep <= moved
    for key, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (f"{key}.running_mean" in moved) == (f"{key}.weight" not in asleep)


def test_dropout_sleeps_in_frozen_stages_and_stays_awake_behind_them():
    vit = create_encoder({**TINY_VIT, **DROPS, "frozen": 2}).net
    assert not vit.pos_drop.training
    assert not any(m.training for block in vit.blocks[:4] for m in block.modules())
    assert all(m.training for block in vit.blocks[4:] for m in block.modules())
    assert vit.blocks[4].drop_path1.training
    steps = create_encoder({"name": "steps", "frozen": 2})
    assert awake(steps) == {"", "steps"} | {
        key for i in (3, 4) for key in (f"steps.{i}", *(f"steps.{i}.{k}" for k in range(3)))
    }
    assert trained(steps) == {"scale"} | {
        f"steps.{i}.{k}.{w}" for i in (3, 4) for k in (0, 1) for w in ("weight", "bias")
    }


def test_frozen_stages_give_the_same_features_in_train_mode():
    encoder = create_encoder({**TINY_VIT, **DROPS, "frozen": 2}).train()
    image = torch.rand(2, 3, 64, 64)
    first, second = encoder(image), encoder(image)
    assert all(torch.equal(first[i], second[i]) for i in (0, 1))
    assert not any(torch.equal(first[i], second[i]) for i in (2, 3))


@pytest.mark.parametrize("frozen", [True, 1, 2, 3, 4])
@pytest.mark.parametrize("encoder", ["resnet10t", "steps"])
def test_copies_are_frozen_on_their_own(encoder, frozen):
    model = zoo.create_model(encoder={"name": encoder, "frozen": frozen}, decoder="linear")
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        zoo.create_model(**json.loads(json.dumps(model.config))),
    ):
        assert other.config["encoder"]["frozen"] is frozen
        model.eval()
        other.train()
        assert not awake(model)
        model.train()
        assert awake(other) == awake(model)
        assert trained(other) == trained(model)
        assert {id(m) for m in other.modules()}.isdisjoint(id(m) for m in model.modules())
        train_steps(other, count=1)


@pytest.mark.parametrize("frozen", [True, 2])
def test_a_checkpoint_comes_back_frozen_and_answers_the_same(tmp_path, frozen):
    model = zoo.create_model(encoder={"name": "resnet10t", "frozen": frozen}, decoder="linear", num_classes=3)
    train_steps(model, count=1)
    again = zoo.load_model(model.save(tmp_path / "saved"))
    assert again.config == model.config
    assert not again.training
    image = torch.rand(1, 3, 45, 33)
    assert torch.equal(again(image)["logits"], model.eval()(image)["logits"])
    assert awake(again.train()) == awake(model.train())
    assert trained(again) == trained(model)


@pytest.mark.parametrize("decoder", zoo.list_decoders())
def test_every_decoder_trains_on_a_frozen_encoder(decoder):
    model = zoo.create_model(encoder={"name": "resnet10t", "frozen": True}, decoder=decoder)
    before = {key: value.clone() for key, value in model.encoder.net.state_dict().items()}
    assert any(key.startswith("decoder.") for key in train_steps(model, count=1))
    assert all(torch.equal(value, before[key]) for key, value in model.encoder.net.state_dict().items())


def test_a_named_models_encoder_can_be_frozen():
    model = zoo.create_model("pranet", encoder={"frozen": True})
    assert model.config["encoder"]["frozen"] is True
    assert not trained(model.encoder.net)


@pytest.mark.parametrize("frozen", [False, 0])
def test_nothing_is_frozen_where_that_is_said(frozen):
    plain, encoder = create_encoder({"name": "resnet10t"}), create_encoder({"name": "resnet10t", "frozen": frozen})
    assert trained(encoder) == trained(plain)
    assert awake(encoder) == awake(plain)


@pytest.mark.parametrize("frozen", [9, -1, 5, "yes", 2.0, None, [1]])
@pytest.mark.parametrize("encoder", ["resnet10t", "steps"])
def test_other_values_are_refused(encoder, frozen):
    with pytest.raises(UserError, match=rf"frozen is .* for the encoder '{encoder}'; give true .* 4 stages"):
        zoo.create_model(encoder={"name": encoder, "frozen": frozen}, decoder="linear")


def test_a_registered_encoder_without_the_stages_says_so():
    with pytest.raises(UserError, match="'steps' has no weights up to stride 4 under this decoder"):
        create_encoder({"name": "steps", "frozen": 1}, strides=(8, 16))

    @registry.register_encoder(name="looks_at_values")
    class LooksAtValues(Steps):
        def forward(self, image):
            return super().forward(image * float(image.max()))

    with pytest.raises(UserError, match=r"'looks_at_values' cannot be told apart \(.*\); frozen: true"):
        create_encoder({"name": "looks_at_values", "frozen": 1})
    assert not trained(create_encoder({"name": "looks_at_values", "frozen": True}))


def test_a_misspelt_frozen_is_answered_with_the_right_word():
    with pytest.raises(UserError, match=r"'frozn'.*'frozen'"):
        create_encoder({"name": "steps", "frozn": True})


@pytest.mark.parametrize("frozen", [True, 2])
def test_finding_stages_draws_no_random_numbers_and_runs_nothing_of_the_net(frozen):
    torch.manual_seed(0)
    create_encoder({"name": "resnet10t"})
    expected = torch.rand(3)
    torch.manual_seed(0)
    encoder = create_encoder({"name": "resnet10t", "frozen": frozen})
    assert torch.equal(torch.rand(3), expected)
    assert all(m.num_batches_tracked == 0 for m in encoder.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.device("meta"), torch.no_grad():
        assert trained(create_encoder({"name": "resnet10t", "frozen": frozen})) == trained(encoder)


def test_a_frozen_model_compiles_without_a_graph_break():
    model = zoo.create_model(encoder={"name": "resnet10t", "frozen": True}, decoder="linear").eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(image)["logits"], model(image)["logits"])


def test_the_recipe_builds_a_frozen_vit_under_a_linear_head():
    from zoo.training.recipe import load_recipe

    recipe = load_recipe("segmentation/frozen_vit_folder", ["--model.encoder_weights", "null"])
    with torch.device("meta"):
        model = zoo.create_model(**{**recipe.model, "num_classes": 2})
    assert trained(model) == {f"decoder.{part}.{w}" for part in ("norm", "head") for w in ("weight", "bias")}
    assert [side % model.encoder.plan.multiple for side in recipe.data.size] == [0, 0]
    partly = load_recipe("segmentation/frozen_vit_folder", ["--model.encoder.frozen", "2"])
    assert partly.model["encoder"] == {"name": "vit_small_patch14_dinov2", "frozen": 2}
