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
    net.load_state_dict({k: v.clone() for k, v in converted.items()}, assign=True)
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
