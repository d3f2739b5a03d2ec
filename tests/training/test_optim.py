import math

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from zoo.create import create_model
from zoo.errors import UserError
from zoo.training.keys import Optimizer, Scheduler
from zoo.training.optim import create_optimizer, create_schedule, parameter_groups

VIT = {"name": "vit_tiny_patch16_224", "depth": 4, "embed_dim": 48, "num_heads": 3, "img_size": 64}


def rates(scheduler, steps, *, lr=1.0):
    """The lr of every step (or epoch) as a torch optimiser sees it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    factor, _ = create_schedule(scheduler, steps=steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_the_step_schedule_falls_from_the_initial_rate_every_few_epochs():
    scheduler = Scheduler(name="step", every=3, gamma=0.1)
    assert create_schedule(scheduler, steps=100)[1] == "epoch"
    assert rates(scheduler, 9) == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])


def test_cosine_and_poly_fall_with_every_step_to_their_end():
    assert rates(Scheduler(name="cosine"), 4) == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    assert rates(Scheduler(name="poly", power=0.9), 4) == pytest.approx([1, 0.75**0.9, 0.5**0.9, 0.25**0.9])
    factor, counted = create_schedule(Scheduler(name="cosine", final=0.1), steps=10)
    assert counted == "step"
    assert factor(10) == pytest.approx(0.1)
    assert factor(11) == pytest.approx(0.1)


def test_the_warm_up_rises_in_a_straight_line_to_the_full_rate_and_takes_at_most_half():
    assert rates(Scheduler(name="constant", warmup=3), 6) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert rates(Scheduler(name="constant", warmup=50), 4) == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_without_a_known_end_only_schedules_without_one_serve():
    assert create_schedule(Scheduler(name="constant"), steps=math.inf)[0](10**9) == 1
    assert create_schedule(Scheduler(name="step"), steps=math.inf)[1] == "epoch"
    for scheduler in (Scheduler(name="cosine"), Scheduler(name="poly"), Scheduler(name="constant", warmup=3)):
        with pytest.raises(UserError, match=r"needs the number of steps.*trainer\.max_epochs"):
            create_schedule(scheduler, steps=math.inf)


def test_the_step_schedule_has_no_warm_up():
    with pytest.raises(UserError, match="warmup is 5"):
        create_schedule(Scheduler(name="step", warmup=5), steps=10)


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("Adam", torch.optim.Adam), ("SGD", torch.optim.SGD)]
)
def test_optimisers_are_torchs_by_name_in_any_case(name, kind):
    optimizer = create_optimizer(nn.Linear(1, 1), Optimizer(name=name, lr=0.5, weight_decay=0.25))
    assert type(optimizer) is kind
    assert optimizer.defaults["lr"] == 0.5
    assert optimizer.defaults["weight_decay"] == 0.25


def test_wrong_optimisers_are_sentences():
    with pytest.raises(UserError, match=r"'admaw'.*did you mean 'adamw'"):
        create_optimizer(nn.Linear(1, 1), Optimizer(name="admaw"))
    with pytest.raises(UserError, match=r"'adamw' does not take.*momentum"):
        create_optimizer(nn.Linear(1, 1), Optimizer(name="adamw", momentum=0.9))
    with pytest.raises(UserError, match="no trainable parameters"):
        create_optimizer(nn.ReLU(), Optimizer())


def rates_by_name(model, optimizer):
    """The rate of each parameter that the optimiser holds."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = create_optimizer(model, optimizer).param_groups
    found = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    return found


def test_without_options_of_ours_there_is_one_group_at_the_rate():
    model = create_model(encoder="resnet10t", decoder="linear", num_classes=2)
    [group] = parameter_groups(model, Optimizer(lr=0.5))
    assert len(group["params"]) == len(list(model.parameters()))
    assert group["lr"] == 0.5


def test_the_encoders_rate_is_the_backbones_alone_and_what_we_add_learns_as_fast_as_the_decoder():
    model = create_model(encoder="resnet10t", decoder={"name": "unet", "widths": [8, 8, 8, 8, 4]}, num_classes=2)
    model.encoder.stems["1"] = nn.Conv2d(3, 4, 3)  # as a decoder of finer strides would ask for
    found = rates_by_name(model, Optimizer(lr=0.1, encoder_lr=0.01))
    assert {rate for name, rate in found.items() if name.startswith("encoder.net.")} == {0.01}
    assert {rate for name, rate in found.items() if not name.startswith("encoder.net.")} == {0.1}
    assert any(name.startswith("encoder.stems.") for name in found)
    first = create_optimizer(model, Optimizer(lr=0.1, encoder_lr=0.01)).param_groups[0]
    assert first["lr"] == 0.1  # whose rate is the one in metrics.csv


@pytest.mark.parametrize("where", ["trunk", "pyramid"])
def test_with_attention_the_backbone_has_its_own_rates_and_the_attention_the_decoders(where):
    encoder = {**VIT, "attention": {"name": "medusa", "where": where, "levels": [16], "widths": [4]}}
    model = create_model(encoder=encoder, decoder="linear", num_classes=2)
    found = rates_by_name(model, Optimizer(lr=1.0, encoder_lr=0.1, layer_decay=0.5))
    for block, factor in enumerate([0.125, 0.25, 0.5, 1]):
        inside = {rate for name, rate in found.items() if name.startswith(f"encoder.trunk.net.blocks.{block}.")}
        assert [*inside] == pytest.approx([0.1 * factor])
    assert {name.split(".")[1] for name in found if name.startswith("encoder.")} >= {"trunk", "body", "heads"}
    assert {rate for name, rate in found.items() if not name.startswith("encoder.trunk.net.")} == {1.0}
    groups = create_optimizer(model, Optimizer(weight_decay=0.25, decay_norms=False)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(model.encoder.trunk.net.pos_embed)] == 0
    assert decay[id(model.encoder.trunk.net.blocks[0].attn.qkv.weight)] == 0.25


def test_layer_decay_multiplies_the_rate_at_each_layer_from_the_last_to_the_stem():
    model = create_model(encoder=VIT, decoder="linear", num_classes=2)
    found = rates_by_name(model, Optimizer(name="sgd", lr=1.0, encoder_lr=0.1, layer_decay=0.5))
    for block, factor in enumerate([0.125, 0.25, 0.5, 1]):
        inside = {rate for name, rate in found.items() if name.startswith(f"encoder.net.blocks.{block}.")}
        assert [*inside] == pytest.approx([0.1 * factor])
    assert found["encoder.net.pos_embed"] == pytest.approx(0.1 * 0.0625)
    assert {rate for name, rate in found.items() if name.startswith("decoder.")} == {1.0}


@pytest.mark.parametrize("encoder", ["resnet10t", "convnext_atto", "efficientnet_lite0"])
def test_layers_and_what_is_spared_of_decay_are_timms(encoder):
    model = create_model(encoder=encoder, decoder="linear", num_classes=2)
    net, options = model.encoder.net, Optimizer(lr=1.0, layer_decay=0.75, weight_decay=0.05, decay_norms=False)
    found = {
        id(p): (pytest.approx(group["lr"]), group["weight_decay"])
        for group in create_optimizer(model, options).param_groups
        for p in group["params"]
    }
    expected = param_groups_layer_decay(net, weight_decay=0.05, layer_decay=0.75)
    scales = {group["lr_scale"] for group in expected}
    assert len(scales) > 4
    assert max(scales) == 1
    for group in expected:
        for p in group["params"]:
            assert (group["lr_scale"], group["weight_decay"]) == found.pop(id(p))
    assert {id(p) for p in model.decoder.parameters()} <= set(found)


def test_a_step_moves_each_layer_by_its_own_rate():
    model = create_model(encoder=VIT, decoder="linear", num_classes=2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = create_optimizer(model, Optimizer(name="sgd", lr=1.0, layer_decay=0.5))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {name: (before[name] - p.detach()).mean().item() for name, p in model.named_parameters()}
    assert moved["encoder.net.blocks.3.mlp.fc1.weight"] == pytest.approx(1, rel=1e-4)
    assert moved["encoder.net.blocks.1.mlp.fc1.weight"] == pytest.approx(0.25, rel=1e-4)
    assert moved["encoder.net.patch_embed.proj.weight"] == pytest.approx(0.0625, rel=1e-4)


def test_frozen_weights_are_in_no_group():
    model = create_model(encoder={**VIT, "frozen": 2}, decoder="linear", num_classes=2)
    found = rates_by_name(model, Optimizer(lr=1.0, layer_decay=0.5))
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("encoder.net.blocks.0.", "encoder.net.patch_embed")) for name in found)
    assert found["encoder.net.blocks.2.norm1.weight"] == 0.5  # layers are those of the whole net
    whole = create_model(encoder={**VIT, "frozen": True}, decoder="linear", num_classes=2)
    assert all(name.startswith("decoder.") for name in rates_by_name(whole, Optimizer(layer_decay=0.5)))


def test_weight_decay_spares_norms_biases_and_position_embeddings_where_it_is_told_to():
    model = create_model(encoder=VIT, decoder="linear", num_classes=2)
    names = {id(p): name for name, p in model.named_parameters()}
    for norms, spared in ((True, 0), (False, 1)):
        options = Optimizer(name="adamw", weight_decay=0.25, decay_norms=norms)
        decay = {
            names[id(p)]: group["weight_decay"]
            for group in create_optimizer(model, options).param_groups
            for p in group["params"]
        }
        assert decay["encoder.net.blocks.0.attn.qkv.weight"] == decay["decoder.head.weight"] == 0.25
        for name in ("encoder.net.pos_embed", "encoder.net.blocks.0.norm1.weight", "decoder.head.bias"):
            assert decay[name] == 0.25 * (1 - spared)
    default = create_optimizer(model, Optimizer(name="adamw", decay_norms=False)).param_groups
    assert {group["weight_decay"] for group in default} == {0.0, 0.01}  # torch's own, where none is given


def test_a_schedule_keeps_the_proportions_of_the_groups():
    model = create_model(encoder=VIT, decoder="linear", num_classes=2)
    optimizer = create_optimizer(model, Optimizer(lr=1.0, layer_decay=0.5))
    before = [group["lr"] for group in optimizer.param_groups]
    factor, _ = create_schedule(Scheduler(name="poly", warmup=2), steps=10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for step in range(10):
        now = [group["lr"] for group in optimizer.param_groups]
        assert now == pytest.approx([rate * factor(step) for rate in before])
        optimizer.step()
        schedule.step()


def test_layers_of_an_encoder_that_does_not_tell_them_are_a_sentence():
    model = nn.ModuleDict({"encoder": nn.Conv2d(3, 4, 1), "decoder": nn.Conv2d(4, 2, 1)})
    model.encoder = model["encoder"]
    with pytest.raises(UserError, match=r"Conv2d has no `group_matcher`.*--optimizer\.layer_decay null"):
        create_optimizer(model, Optimizer(layer_decay=0.5))
    assert len(create_optimizer(model, Optimizer(encoder_lr=0.5)).param_groups) == 2
