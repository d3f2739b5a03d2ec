"""PraNet and its decoder: the official network's numbers, any size, any number of classes."""

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import zoo
from zoo.checkpoints.convert import convert, rename
from zoo.decoders import ReverseAttention
from zoo.decoders.reverse_attention import KEYS, pranet
from zoo.errors import UserError

VECTORS = Path(__file__).parent.parent / "parity"
sys.path.insert(0, str(VECTORS))
from fill import fill, image  # noqa: E402

SHAPES = json.loads((VECTORS / "pranet.keys.json").read_text())
LEVELS = (5, 4, 3, 2)  # the official names of the four maps
CHANNELS = (16, 24, 32)


class Encoder(nn.Module):
    """timm's res2net50d as an encoder of strides 8, 16, 32: the official one bit for bit."""

    def __init__(self) -> None:
        super().__init__()
        self.net = timm.create_model("res2net50d", num_classes=0)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.net.maxpool(self.net.act1(self.net.bn1(self.net.conv1(x))))
        x2 = self.net.layer2(self.net.layer1(x))
        x3 = self.net.layer3(x2)
        return [x2, x3, self.net.layer4(x3)]


class PraNet(nn.Module):
    """Encoder and decoder; gives the four maps in the official order, at their own resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = ReverseAttention((512, 1024, 2048), 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return maps(self.decoder, self.encoder(x), x)


def maps(decoder: nn.Module, features: list[Tensor], x: Tensor) -> list[Tensor]:
    """All four maps; the flag of the decoder itself is set, so that its norms stay as they are."""
    training, decoder.training = decoder.training, True
    answer = decoder(features, x)
    decoder.training = training
    return [*answer["aux"], answer["logits"]]


def enlarged(maps: list[Tensor], size) -> list[Tensor]:
    return [F.interpolate(m, tuple(size), mode="bilinear", align_corners=False) for m in maps]


def drawn(key: str, *shape: int) -> Tensor:
    return torch.from_numpy(image(key, shape))


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in fill(SHAPES).items()}


@pytest.fixture
def model(official) -> PraNet:
    net = PraNet().double()
    net.load_state_dict(convert(KEYS, official, shapes(net)))
    return net.eval()


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def vectors() -> dict[str, Tensor]:
    return load_file(VECTORS / "pranet.safetensors")


def structure_loss(logits: Tensor, mask: Tensor, *, as_coded: bool) -> Tensor:
    """The structure loss of the spec, written again for this test."""
    weight = 1 + 5 * (F.avg_pool2d(mask, 31, stride=1, padding=15) - mask).abs()
    bce = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    both = (weight * logits.sigmoid() * mask).sum((2, 3))
    wiou = 1 - (both + 1) / ((weight * (logits.sigmoid() + mask)).sum((2, 3)) - both + 1)
    wbce = bce.mean() if as_coded else (weight * bce).sum((2, 3)) / weight.sum((2, 3))
    return (wbce + wiou).mean()


def test_the_four_maps_equal_the_official_ones_in_float64(model, vectors):
    with torch.no_grad():
        laterals = enlarged(model(drawn("pranet/input", 1, 3, 96, 128)), (96, 128))
    for level, lateral in zip(LEVELS, laterals, strict=True):
        torch.testing.assert_close(lateral, vectors[f"eval/lateral_{level}"], atol=1e-9, rtol=0)


def test_the_four_maps_equal_the_official_ones_in_float32(model, vectors):
    with torch.no_grad():
        laterals = enlarged(model.float()(drawn("pranet/input", 1, 3, 96, 128).float()), (96, 128))
    for level, lateral in zip(LEVELS, laterals, strict=True):
        torch.testing.assert_close(lateral.double(), vectors[f"eval/lateral_{level}"], atol=1e-4, rtol=0)


def test_the_whole_model_takes_official_weights_and_gives_the_official_map(official, vectors):
    model = zoo.create_model("pranet", input_size=None, mean=[0, 0, 0], std=[1, 1, 1]).double().eval()
    model.load_state_dict(zoo.convert_weights("pranet", official))
    with torch.no_grad():
        logits = model(drawn("pranet/input", 1, 3, 96, 128))["logits"]
    torch.testing.assert_close(logits, vectors["eval/lateral_2"], atol=1e-9, rtol=0)


def test_encoder_stages_equal_the_official_ones(model, vectors):
    with torch.no_grad():
        features = model.encoder(drawn("pranet/input", 1, 3, 96, 128))
    for level, feature in zip((2, 3, 4), features, strict=True):
        torch.testing.assert_close(feature[:, ::16], vectors[f"eval/layer{level}_s16"], atol=1e-9, rtol=0)


def test_the_decoder_alone_equals_the_official_one_step_by_step(model):
    truth = load_file(VECTORS / "pranet_decoder.safetensors")
    decoder, seen = model.decoder, {}
    for part in ("rfb2", "rfb3", "rfb4", "ra2", "ra3", "ra4"):
        decoder.get_submodule(part).register_forward_hook(lambda _m, _i, out, part=part: seen.update({part: out}))
    features = [
        drawn("pranet/x2", 1, 512, 24, 20),
        drawn("pranet/x3", 1, 1024, 12, 10),
        drawn("pranet/x4", 1, 2048, 6, 5),
    ]
    picture = torch.zeros(1, 3, 192, 160)
    with torch.no_grad():
        logits = maps(decoder, features, picture)
        alone = decoder(features, picture)
    assert alone.keys() == {"logits"}
    seen["rfb2"], seen["rfb3"] = seen["rfb2"][:, ::4], seen["rfb3"][:, ::2]
    seen |= {f"logit_{level}": z for level, z in zip(LEVELS, logits, strict=True)}
    laterals = enlarged(logits, (192, 160))
    seen |= {f"lateral_{level}_s4": z[..., ::4, ::4] for level, z in zip(LEVELS, laterals, strict=True)}
    assert seen.keys() == truth.keys()
    for key, value in seen.items():
        torch.testing.assert_close(value, truth[key], atol=1e-9, rtol=0)
    torch.testing.assert_close(alone["logits"], truth["logit_2"], atol=1e-9, rtol=0)


def test_losses_gradients_and_statistics_of_a_training_step_equal_the_official_ones(model, official, vectors):
    model.train()
    mask = (drawn("pranet/train_mask", 2, 1, 96, 96) > 0.2).double()
    laterals = enlarged(model(drawn("pranet/train_input", 2, 3, 96, 96)), (96, 96))
    intended = torch.stack([structure_loss(z, mask, as_coded=False) for z in laterals])
    coded = torch.stack([structure_loss(z, mask, as_coded=True) for z in laterals])
    torch.testing.assert_close(intended.detach(), vectors["train/losses_intended_5432"], atol=1e-9, rtol=0)
    torch.testing.assert_close(coded.detach(), vectors["train/losses_coded_5432"], atol=1e-9, rtol=0)
    coded.sum().backward()

    place = placed(official, shapes(model))
    ours = {name: p.grad for name, p in model.named_parameters()}
    for key in (k for k in vectors if k.startswith("train/grad/")):
        torch.testing.assert_close(part(ours, place, key.removeprefix("train/grad/")), vectors[key], atol=1e-9, rtol=0)
    for key in (k for k in vectors if k.startswith("train/bn_after/")):
        after = part(model.state_dict(), place, key.removeprefix("train/bn_after/"))
        torch.testing.assert_close(after, vectors[key], atol=1e-9, rtol=0)


def placed(official: dict[str, Tensor], ours: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, Tensor]]:
    """Where each official tensor lands: our tensors filled with the number of the official key they come from."""
    numbers = {key: torch.full_like(value, i, dtype=torch.int64) for i, (key, value) in enumerate(official.items())}
    landed = convert(KEYS, numbers, ours)
    return {"numbers": {key: i for i, key in enumerate(official)}, "landed": landed}


def part(tensors: dict[str, Tensor], place: dict, key: str) -> Tensor:
    """What of our tensors stands for the official `key`."""
    name = rename(KEYS, key).split("#")[0]
    rows = place["landed"][name] == place["numbers"][key]
    return tensors[name][rows].view(-1, *tensors[name].shape[1:])


def test_official_keys_are_all_used_or_the_dead_classifier_or_a_merged_counter(official):
    dropped = [key for key in official if rename(KEYS, key) == ""]
    live = [key for key in dropped if not key.endswith("num_batches_tracked")]
    assert live == ["resnet.fc.weight", "resnet.fc.bias"]
    assert len(dropped) - len(live) == 3 * 4 + 1  # of five merged norms, three times, and of two
    with torch.device("meta"):
        net = PraNet()
    assert sum(p.numel() for p in net.parameters()) == 30_498_319
    assert sum(p.numel() for p in net.decoder.parameters()) == 6_828_967


def test_weights_of_another_network_are_refused(official):
    strange = {k: v for k, v in official.items() if not k.startswith("ra3_")} | {"crf.weight": torch.zeros(1)}
    with torch.device("meta"):
        net = PraNet()
    with pytest.raises(UserError, match=r"1 unknown: crf\.weight; .*missing: decoder\.ra3"):
        convert(KEYS, strange, shapes(net))


def test_pranet_is_the_published_configuration():
    assert pranet() == dict(encoder="res2net50d", decoder="reverse_attention", num_classes=1, input_size=[352, 352])


def pyramid(height: int, width: int, batch: int = 1, channels=CHANNELS) -> tuple[list[Tensor], Tensor]:
    features = [
        torch.randn(batch, c, -(-height // s), -(-width // s)) for c, s in zip(channels, (8, 16, 32), strict=True)
    ]
    return features, torch.randn(batch, 3, height, width)


def small(num_outputs: int = 1, **options) -> ReverseAttention:
    """A small decoder whose norms are not at rest."""
    torch.manual_seed(0)
    decoder = ReverseAttention(CHANNELS, num_outputs, width=8, ra_widths=(16, 8, 8), **options)
    for norm in decoder.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.weight, norm.running_mean, norm.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
    return decoder.eval()


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 100), width=st.integers(1, 100), num_outputs=st.integers(1, 3))
def test_takes_any_size_and_answers_at_stride_8(height, width, num_outputs):
    with torch.no_grad():
        g5, s4, s3, s2 = maps(small(num_outputs), *pyramid(height, width))
    for logits, stride in ((g5, 8), (s4, 32), (s3, 16), (s2, 8)):
        assert logits.shape == (1, num_outputs, -(-height // stride), -(-width // stride))
        assert logits.isfinite().all()


def test_an_image_of_33_by_47_trains_every_parameter():
    decoder = small(2).train()
    answer = decoder(*pyramid(33, 47, batch=2))
    sum(z.square().mean() for z in [answer["logits"], *answer["aux"]]).backward()
    assert not [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("num_outputs", [1, 3, 24])  # 24 = 3 * width: too many for the folded head
def test_eval_gives_what_the_unfolded_convolutions_give(num_outputs):
    decoder, inputs = small(num_outputs).double(), pyramid(40, 56)
    inputs = [f.double() for f in inputs[0]], inputs[1].double()
    with torch.no_grad():
        folded = decoder(*inputs)["logits"]
        head = decoder.aggregate.coarse
        head.register_forward_hook(lambda m, args, out: m.last(m.norm(m.k6(*args))))
        torch.testing.assert_close(decoder(*inputs)["logits"], folded, atol=1e-12, rtol=0)


def test_at_one_class_both_gates_are_the_papers():
    z = torch.randn(2, 1, 5, 7)
    for exclusive in (True, False):
        torch.testing.assert_close(small(1, exclusive=exclusive).unsure(z), 1 - z.sigmoid())


def test_more_classes_gate_by_the_surest_one():
    z = torch.tensor([[2.0, -1.0, 0.5]]).view(1, 3, 1, 1)
    e = torch.exp(z.flatten())
    assert small(3, exclusive=True).unsure(z).item() == pytest.approx(1 - (e[0] / e.sum()).item())
    assert small(3, exclusive=False).unsure(z).item() == pytest.approx(1 - (e[0] / (1 + e[0])).item())


@pytest.mark.parametrize("option", ["ra_widths", "ra_kernels"])
def test_options_of_a_wrong_length_are_refused(option):
    with pytest.raises(UserError, match=f"takes 3 {option}, not 2"):
        ReverseAttention(CHANNELS, 1, **{option: (3, 3)})


def test_an_even_kernel_and_a_wrong_number_of_levels_are_refused():
    with pytest.raises(UserError, match="even size 4"):
        ReverseAttention(CHANNELS, 1, ra_kernels=(5, 4, 3))
    with pytest.raises(UserError, match="takes 3 feature levels, not 4"):
        ReverseAttention((8, 8, 8, 8), 1)
