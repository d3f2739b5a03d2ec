"""MS-Dual-Guided and its decoder: the official network's numbers, any size, any pyramid, any number of classes."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import zoo
from zoo.checkpoints.convert import convert, rename
from zoo.decoders import SelfGuided
from zoo.decoders.self_guided import KEYS, ms_dual_guided
from zoo.errors import UserError

VECTORS = Path(__file__).parent.parent / "parity"
sys.path.insert(0, str(VECTORS))
from fill import fill, image, uniform  # noqa: E402

SHAPES = json.loads((VECTORS / "msdg.keys.json").read_text())
DEEPEST_FIRST = (4, 3, 2, 1)  # the official numbers of the scales
CHANNELS = (8, 12, 16, 24)
SMALL = dict(width=8, qk_width=2, semantic_width=12)


def drawn(key: str, *shape: int) -> Tensor:
    return torch.from_numpy(image(key, shape))


def weights() -> dict[str, Tensor]:
    """The official state_dict, filled so that neither attention saturates."""
    state = fill(SHAPES, gain=0.7)
    for key, value in state.items():
        if key.endswith(("query_conv.weight", "key_conv.weight")):
            state[key] = 6 * value
        elif key.endswith(".gamma"):
            state[key] = uniform(key, value.shape, 0.5, 1.5)
        elif key.startswith("cam_attention") and key.endswith(("attn.1.weight", "attn.1.bias")):
            state[key] = 0.3 * value
        elif value.ndim == 4 and key.startswith(("semanticModule_", "conv_sem_", "conv8_", "predict")):
            state[key] = 2 * value
    return {key: torch.from_numpy(value) for key, value in state.items()}


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    return weights()


@pytest.fixture(scope="module")
def converted(official) -> dict[str, Tensor]:
    return zoo.convert_weights("ms_dual_guided", official)


@pytest.fixture
def model(converted) -> nn.Module:
    with torch.device("meta"):
        net = zoo.create_model("ms_dual_guided")
    own = ("running_mean", "running_var", "num_batches_tracked")  # what a test may change in place
    net.load_state_dict({k: v.clone() if k.endswith(own) else v for k, v in converted.items()}, assign=True)
    net.mean, net.std = torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double()
    return net.eval()


@pytest.fixture(scope="module")
def vectors() -> dict[str, Tensor]:
    return load_file(VECTORS / "msdg.safetensors")


def seen(model: nn.Module, x: Tensor) -> dict[str, list[Tensor]]:
    """The training outputs by the vectors' names: both steps' scales, deepest first; the norms keep their mode."""
    kept: dict[str, list[Tensor]] = {"sem": [], "enc_in": [], "rec": []}

    def keep(step: nn.Module, args: tuple, answer: tuple) -> None:
        _, code, u, v = answer
        kept["sem"] += code.chunk(step.scales)
        kept["enc_in"] += u.chunk(step.scales, dim=1)
        kept["rec"] += v.chunk(step.scales, dim=1)

    hooks = [step.register_forward_hook(keep) for step in model.decoder.steps]
    flag, model.decoder.training = model.decoder.training, True
    outputs = model(x)
    model.decoder.training = flag
    for hook in hooks:
        hook.remove()
    return {**kept, "pred": outputs["aux"], "losses": outputs["losses"]}


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 4 * 2.4e-6)])
def test_the_map_equals_the_official_one(model, vectors, dtype, atol):
    with torch.no_grad():
        logits = model.to(dtype)(drawn("msdg/input", 1, 1, 64, 96).to(dtype))["logits"]
    torch.testing.assert_close(logits.double(), vectors["eval/out"], atol=atol, rtol=0)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 4 * 5.6e-6)])
def test_codes_pairs_and_maps_of_all_scales_equal_the_official_ones(model, vectors, dtype, atol):
    with torch.no_grad():
        outputs = seen(model.to(dtype), drawn("msdg/input", 1, 1, 64, 96).to(dtype))
    names = [(step, s) for step in (1, 2) for s in DEEPEST_FIRST]
    for i, (step, s) in enumerate(names):
        maps = F.interpolate(outputs["pred"][i], (64, 96), mode="bilinear")
        for key, value in {
            f"sem{step}_s{s}_s64": outputs["sem"][i].flatten()[::64],
            f"enc_in{step}_s{s}_c8s2": outputs["enc_in"][i][:, ::8, ::2, ::2],
            f"rec{step}_s{s}_c8s2": outputs["rec"][i][:, ::8, ::2, ::2],
            f"pred{step}_s{s}_s4": maps[..., ::4, ::4],
        }.items():
            torch.testing.assert_close(value.double(), vectors[f"branch/{key}"], atol=atol, rtol=0)


def test_losses_gradients_and_statistics_of_a_training_step_equal_the_official_ones(model, official, vectors):
    model.train()
    label = torch.floor(2.5 * (drawn("msdg/train_label", 2, 64, 64) + 1)).clamp(0, 4).long()
    outputs = seen(model, drawn("msdg/train_input", 2, 1, 64, 64))
    pairs = [F.mse_loss(v, u) for u, v in zip(outputs["enc_in"], outputs["rec"], strict=True)]
    guided = [F.mse_loss(a, b) for a, b in zip(outputs["sem"][:4], outputs["sem"][4:], strict=True)]
    maps = [F.interpolate(p, (64, 64), mode="bilinear") for p in outputs["pred"]]
    ce = [F.cross_entropy(p, label) for p in maps]

    def finest_first(terms: list[Tensor]) -> Tensor:
        return torch.stack([*terms[3::-1], *terms[:3:-1]])

    close = dict(atol=1e-9, rtol=0)
    torch.testing.assert_close(finest_first(ce), vectors["train/ce_8"], **close)
    torch.testing.assert_close(finest_first(pairs), vectors["train/rec_8"], **close)
    torch.testing.assert_close(torch.stack(guided), vectors["train/guided_4"], **close)
    torch.testing.assert_close(outputs["losses"]["guided"], vectors["train/guided_4"].sum(), **close)
    torch.testing.assert_close(outputs["losses"]["reconstruction"], vectors["train/rec_8"].sum(), **close)

    batch = {"mask": label}
    terms = model.task.loss(
        {"logits": torch.zeros(2, 5, 64, 64).double(), "aux": outputs["pred"], "losses": outputs["losses"]},
        batch, {"ce": 1.0}, decoder_weights=SelfGuided.loss_weights,
    )  # fmt: skip
    torch.testing.assert_close(terms["loss"], vectors["train/total"][0], **close)
    terms["loss"].backward()

    place = placed(official, shapes(model))
    ours = {name: p.grad for name, p in model.named_parameters()}
    gammas = torch.cat([part(ours, place, key) for key in sorted(official) if key.endswith(".gamma")])
    torch.testing.assert_close(gammas, vectors["train/grad_gammas"], **close)
    for key in (k for k in vectors if k.startswith("train/grad/")):
        torch.testing.assert_close(part(ours, place, key.removeprefix("train/grad/")), vectors[key], **close)
    for key in (k for k in vectors if k.startswith("train/bn_after/")):
        after = part(model.state_dict(), place, key.removeprefix("train/bn_after/"))
        torch.testing.assert_close(after, vectors[key], **close)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def placed(official: dict[str, Tensor], ours: dict[str, tuple[int, ...]]) -> dict:
    """Where each official tensor lands: our tensors filled with the number of the official key they come from."""
    numbers = {key: torch.full_like(value, i, dtype=torch.int16) for i, (key, value) in enumerate(official.items())}
    return {"numbers": {key: i for i, key in enumerate(official)}, "landed": convert(KEYS, numbers, ours)}


def part(tensors: dict[str, Tensor], place: dict, key: str) -> Tensor:
    """What of our tensors stands for the official `key`."""
    name = rename(KEYS, key).split("#")[0]
    rows = place["landed"][name] == place["numbers"][key]
    return tensors[name][rows].view(-1, *tensors[name].shape[1:])


def test_official_keys_are_all_used_or_never_called(official):
    dropped = [key for key in official if rename(KEYS, key) == ""]
    counters = [key for key in dropped if key.startswith(("pam_", "cam_")) and key.endswith("num_batches_tracked")]
    dead = [key for key in dropped if key not in counters]
    assert len(counters) == 2 * 2 * 2 * 3  # of three scales, in two branches of two norms, in two steps
    assert {key.split(".")[0][:-1] for key in dead} == {"conv6_", "conv7_", "attention", "refine"}
    assert sum(official[key].numel() for key in dead if "running" not in key and "tracked" not in key) == 955_412


@pytest.mark.parametrize(
    ("overrides", "parameters"),
    [
        ({}, 104_511_475 - 955_412),
        ({"encoder": "resnext101_32x4d"}, 58_942_431),
        ({"encoder": "resnext101_32x4d", "decoder": {"share_reading": True}}, 58_499_679),
    ],
)
def test_has_the_official_number_of_parameters(overrides, parameters):
    with torch.device("meta"):
        model = zoo.create_model("ms_dual_guided", **overrides)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_weights_of_another_network_are_refused(official):
    strange = {k: v for k, v in official.items() if not k.startswith("conv8_12.")} | {"crf.weight": torch.zeros(1)}
    message = r"1 unknown: crf\.weight; 2 misshapen: decoder\.steps\.1\.last\.weight #0 .* \+ #2"
    with pytest.raises(UserError, match=message):
        zoo.convert_weights("ms_dual_guided", strange)
    with pytest.raises(UserError, match=r"unknown: predict5\.bias"):
        zoo.convert_weights("ms_dual_guided", official | {"predict5.bias": torch.zeros(5)})


def test_ms_dual_guided_is_the_published_configuration():
    assert ms_dual_guided() == dict(
        encoder="resnext101_32x8d", decoder="self_guided", num_classes=5, in_channels=1, mean=[0.0], std=[1.0]
    )
    assert SelfGuided.loss_weights == {"main": 0.0, "guided": 0.25, "reconstruction": 0.1}


def pyramid(height: int, width: int, batch: int = 1, scales=(4, 8, 16, 32)) -> tuple[list[Tensor], Tensor]:
    features = [
        torch.randn(batch, c, -(-height // s), -(-width // s))
        for c, s in zip(CHANNELS[: len(scales)], scales, strict=True)
    ]
    return features, torch.randn(batch, 1, height, width)


def small(num_outputs: int = 2, channels=CHANNELS, **options) -> SelfGuided:
    """A small decoder whose norms are not at rest and whose attention is on."""
    torch.manual_seed(0)
    decoder = SelfGuided(channels, num_outputs, **SMALL, **options)
    for name, values in decoder.state_dict().items():
        if name.endswith(("gamma", "running_mean", "running_var")):
            nn.init.uniform_(values, 0.5, 1.5)
    return decoder.eval()


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), num_outputs=st.integers(1, 3))
def test_takes_any_size_and_answers_at_stride_4(height, width, num_outputs):
    decoder = small(num_outputs)
    decoder.training = True
    with torch.no_grad():
        answer = decoder(*pyramid(height, width))
    for logits in (answer["logits"], *answer["aux"]):
        assert logits.shape == (1, num_outputs, -(-height // 4), -(-width // 4))
        assert logits.isfinite().all()


@pytest.mark.parametrize("scales", [(4,), (8, 16, 32), (4, 8, 16)])
@pytest.mark.parametrize("steps", [1, 3])
def test_takes_any_pyramid_and_number_of_steps(scales, steps):
    assert SelfGuided.strides(scales=scales) == scales
    decoder = small(channels=CHANNELS[: len(scales)], scales=scales, steps=steps).train()
    answer = decoder(*pyramid(40, 56, batch=2, scales=scales))
    assert len(answer["aux"]) == 2 * len(scales)
    assert answer["logits"].shape == (2, 2, -(-40 // scales[0]), -(-56 // scales[0]))
    assert answer["losses"]["reconstruction"] > 0
    assert (answer["losses"]["guided"] > 0) == (steps > 1)


@pytest.mark.parametrize("batch", [1, 2])
def test_an_image_of_33_by_47_trains_every_parameter(batch):
    decoder = small().train()
    answer = decoder(*pyramid(33, 47, batch=batch))
    (sum(z.square().mean() for z in answer["aux"]) + sum(answer["losses"].values())).backward()
    assert not [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]


def test_the_logits_are_the_mean_of_the_last_maps():
    decoder = small()
    decoder.training = True
    answer = decoder(*pyramid(40, 56))
    torch.testing.assert_close(answer["logits"], torch.stack(answer["aux"][4:]).mean(dim=0))


@pytest.mark.parametrize("batch", [1, 2])
def test_all_scales_at_once_give_what_they_give_one_by_one(batch):
    decoder, (features, image) = small(steps=3).double(), pyramid(38, 57, batch=batch)
    features = [f.double() for f in features]
    with torch.no_grad():
        at_once = decoder(features, image)["logits"]
        for step in decoder.steps:
            step.training = True
        torch.testing.assert_close(decoder(features, image)["logits"], at_once, atol=1e-12, rtol=0)


def test_statistics_over_all_scales_are_an_option_of_training_alone():
    inputs = pyramid(40, 56, batch=2)
    decoders = [small(batch_scales=flag) for flag in (False, True)]
    answers = [decoder(*inputs)["logits"] for decoder in decoders]
    torch.testing.assert_close(*answers)
    trained = [decoder.train()(*inputs)["aux"][-1] for decoder in decoders]
    assert (trained[0] - trained[1]).abs().max() > 1e-3
    counted = [decoder.steps[0].autoencoder.encode1[0].num_batches_tracked for decoder in decoders]
    assert counted == [4, 1]


@pytest.mark.parametrize("detach", [False, True])
def test_the_guided_loss_pulls_both_codes_unless_the_target_is_detached(detach):
    decoder, codes = small(detach_targets=detach).train(), []

    def keep(step: nn.Module, args: tuple, answer: tuple) -> None:
        answer[1].retain_grad()
        codes.append(answer[1])

    for step in decoder.steps:
        step.register_forward_hook(keep)
    decoder(*pyramid(40, 56))["losses"]["guided"].backward()
    assert codes[1].grad.any()
    assert (codes[0].grad is None) == detach


def test_the_loss_is_on_the_eight_maps_and_the_decoders_own_terms():
    options = dict(encoder="resnet10t", decoder=SMALL, num_classes=3)
    model = zoo.create_model("ms_dual_guided", **options).train()
    batch = {"image": torch.rand(2, 1, 64, 48), "mask": torch.randint(3, (2, 64, 48))}
    outputs = model(batch["image"])
    assert len(outputs["aux"]) == 8
    defaults = model.decoder.loss_weights
    terms = model.task.loss(outputs, batch, {"ce": 1.0}, decoder_weights=defaults)
    assert terms.keys() == {"loss", "ce_aux", "guided", "reconstruction"}
    torch.testing.assert_close(terms["guided"], 0.25 * outputs["losses"]["guided"])
    torch.testing.assert_close(terms["reconstruction"], 0.1 * outputs["losses"]["reconstruction"])
    own = model.task.loss(
        outputs, batch, {"ce": 1.0, "main": 1.0, "guided": 0}, decoder_weights=model.decoder.loss_weights
    )
    assert own["ce"] > 0
    assert own["guided"] == 0


def test_comes_back_from_its_folder_with_every_option(tmp_path):
    options = dict(**SMALL, scales=[8, 16], steps=1, share_reading=True)
    model = zoo.create_model("ms_dual_guided", encoder="resnet10t", decoder=options).eval()
    model.save(tmp_path)
    back = zoo.load_model(tmp_path)
    assert back.config == model.config
    assert {k: v for k, v in back.config["decoder"].items() if k in options} == options
    x = torch.rand(1, 1, 50, 41)
    with torch.no_grad():
        assert torch.equal(back(x)["logits"], model(x)["logits"])


def test_the_faster_equal_of_the_model_is_equal():
    model = zoo.create_model("ms_dual_guided", encoder="resnet10t", decoder=SMALL).eval()
    model.decoder.load_state_dict(small(5, channels=model.encoder.channels).state_dict())
    x = torch.rand(1, 50, 41)
    with torch.no_grad():
        expected = model.answer(x[None])["probabilities"][0]
    torch.testing.assert_close(torch.from_numpy(model.predict(x).probabilities), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_exports_with_batch_height_and_width_left_open():
    decoder, open_sizes = small(), dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    features, image = pyramid(72, 104, batch=2)
    dynamic = ([open_sizes] * len(features), open_sizes)
    with torch.no_grad():
        program = torch.export.export(decoder, (features, image), dynamic_shapes=dynamic).module()
        for inputs in (pyramid(72, 104, batch=2), pyramid(97, 65, batch=3)):
            torch.testing.assert_close(program(*inputs)["logits"], decoder(*inputs)["logits"])


def test_bfloat16_stays_finite_in_eval_and_training():
    decoder, (features, image) = small().bfloat16(), pyramid(40, 56)
    features = [100 * f.bfloat16() for f in features]
    assert decoder(features, image)["logits"].isfinite().all()
    answer = decoder.train()(features, image)
    sum(z.square().mean() for z in answer["aux"]).backward()
    assert all(p.grad.isfinite().all() for p in decoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("option", ["width", "qk_width", "semantic_width", "steps"])
def test_an_option_below_1_is_refused(option):
    with pytest.raises(UserError, match=f"self_guided has {option} 0; give 1 or more"):
        SelfGuided(CHANNELS, 1, **{option: 0})


def test_levels_that_are_not_the_scales_are_refused():
    with pytest.raises(UserError, match=r"each of its scales \(4, 8, 16, 32\), not 3 \(8, 12, 16\)"):
        SelfGuided(CHANNELS[:3], 1)
