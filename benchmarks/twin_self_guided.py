"""A plain twin of the official MS-Dual-Guided: scale by scale, every N x N map in memory, written to compare with.

It counts as MS-Dual-Guided because it passes the parity vectors and its FLOPs at 256 x 256 are the official ones:

    python -m benchmarks.twin_self_guided
"""

import json
import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

VECTORS = Path(__file__).parent.parent / "tests" / "parity"
SCALES = (4, 3, 2, 1)
STAGES = {1: 256, 2: 512, 3: 1024, 4: 2048}
DEAD = ("conv6_", "conv7_", "attention", "refine")  # of the official modules those that no forward calls


def cbp(channels: int, out_channels: int, kernel: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2), nn.BatchNorm2d(out_channels), nn.PReLU()]


def up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


class Position(nn.Module):
    def __init__(self, channels: int = 64):
        super().__init__()
        self.query_conv = nn.Conv2d(channels, channels // 8, 1)
        self.key_conv = nn.Conv2d(channels, channels // 8, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (self.query_conv, self.key_conv, self.value_conv))
        attention = torch.bmm(q.transpose(1, 2), k).softmax(dim=-1)  # B, N, N
        return self.gamma * torch.bmm(v, attention.transpose(1, 2)).view_as(x) + x


class Channel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        energy = torch.bmm(flat, flat.transpose(1, 2))
        attention = (energy.amax(dim=-1, keepdim=True) - energy).softmax(dim=-1)
        return self.gamma * torch.bmm(attention, flat).view_as(x) + x


class Branch(nn.Module):
    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attn = nn.Sequential(*cbp(128, 64, 3), attention, *cbp(64, 64, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x)


def convs(channels: int, out_channels: int) -> list[nn.Module]:
    first = nn.Conv2d(channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
    second = nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
    return [*first, *second]


class Stage(nn.Module):
    def __init__(self, name: str, *layers: nn.Module):
        super().__init__()
        setattr(self, name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        return next(self.children())(x)


class Semantic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc1 = Stage("encode", *convs(128, 256), nn.MaxPool2d(2))
        self.enc2 = Stage("encode", *convs(256, 512), nn.MaxPool2d(2))
        self.dec2 = Stage("decode", *convs(512, 256), nn.ConvTranspose2d(256, 256, 2, stride=2))
        self.dec1 = Stage("decode", *convs(256, 128), nn.ConvTranspose2d(128, 128, 2, stride=2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        half = self.enc1(x)
        code = self.enc2(half)
        return code.flatten(), self.dec1(up(self.dec2(code), half))


class TwinDecoder(nn.Module):
    """Features at strides 4, 8, 16, 32 and the image's size -> the mean map, or the 32 training outputs in groups."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        for s, channels in STAGES.items():
            setattr(self, f"down{s}", nn.Sequential(*cbp(channels, 64)))
        self.fuse1 = Stage("fuse_attn", *cbp(256, 64, 3), *cbp(64, 64, 3), *cbp(64, 64))
        self.semanticModule_1_1, self.semanticModule_2_1 = Semantic(), Semantic()
        for i, s in enumerate(SCALES, start=1):
            for n in (1, 2):
                setattr(self, f"pam_attention_{n}_{s}", Branch(Position()))
                setattr(self, f"cam_attention_{n}_{s}", Branch(Channel()))
                setattr(self, f"conv_sem_{n}_{i}", nn.Conv2d(128, 64, 3, padding=1))
                setattr(self, f"conv8_{i + 10 * (n - 1)}", nn.Conv2d(64, 64, 1))
            setattr(self, f"predict{s}", nn.Conv2d(64, classes, 1))
            setattr(self, f"predict{s}_2", nn.Conv2d(64, classes, 1))

    def forward(self, features: list[Tensor], image: Tensor) -> Tensor | dict[str, list[Tensor]]:
        def part(name: str, x: Tensor) -> Tensor:
            return getattr(self, name)(x)

        d = {s: up(part(f"down{s}", features[s - 1]), features[0]) for s in SCALES}
        fused = self.fuse1(torch.cat([d[s] for s in SCALES], dim=1))
        guide = dict.fromkeys(SCALES, fused)
        out: dict[str, list[Tensor]] = {k: [] for k in ("codes", "inputs", "reconstructions", "maps")}
        out["maps"] += [up(part(f"predict{s}", d[s]), image) for s in SCALES]
        for n in (1, 2):
            for i, s in enumerate(SCALES, start=1):
                x = torch.cat([d[s], guide[s]], dim=1)
                code, made = getattr(self, f"semanticModule_{n}_1")(x)
                attended = part(f"pam_attention_{n}_{s}", x) + part(f"cam_attention_{n}_{s}", x)
                attended = part(f"conv8_{i + 10 * (n - 1)}", attended * part(f"conv_sem_{n}_{i}", made))
                if n == 1:
                    guide[s] = attended * fused
                else:
                    out["maps"].append(up(part(f"predict{s}_2", attended), image))
                for key, value in (("codes", code), ("inputs", x), ("reconstructions", made)):
                    out[key].append(value)
        return out if self.training else sum(out["maps"][4:]) / 4


def loss(out: dict[str, list[Tensor]], label: Tensor) -> Tensor:
    """The published sum: cross-entropies, a quarter of the guided and a tenth of the reconstruction terms."""
    ce = sum(F.cross_entropy(m, label) for m in out["maps"])
    guided = sum(F.mse_loss(a, b) for a, b in zip(out["codes"][:4], out["codes"][4:], strict=True))
    made = sum(F.mse_loss(a, b) for a, b in zip(out["inputs"], out["reconstructions"], strict=True))
    return ce + 0.25 * guided + 0.1 * made


class Twin(TwinDecoder):
    """The whole network; timm's resnext101_32x8d is the official encoder bit for bit."""

    def __init__(self) -> None:
        super().__init__()
        net = timm.create_model("resnext101_32x8d", in_chans=1, num_classes=0)
        stem, stage1 = nn.Sequential(net.conv1, net.bn1, net.act1), nn.Sequential(net.maxpool, net.layer1)
        layers = dict(layer0=stem, layer1=stage1, layer2=net.layer2, layer3=net.layer3, layer4=net.layer4)
        self.resnext = nn.ModuleDict(layers)

    def encode(self, image: Tensor) -> list[Tensor]:
        features, x = [], image
        for layer in self.resnext.values():
            x = layer(x)
            features.append(x)
        return features[1:]

    def forward(self, image: Tensor) -> Tensor | dict[str, list[Tensor]]:
        return super().forward(self.encode(image), image)


def official() -> dict[str, Tensor]:
    """The official state_dict with the weights of the vectors, without what no forward calls."""
    sys.path.insert(0, str(VECTORS))
    from fill import fill, uniform

    state = fill(json.loads((VECTORS / "msdg.keys.json").read_text()), gain=0.7)
    for key, value in state.items():
        if key.endswith(".gamma"):
            state[key] = uniform(key, value.shape, 0.5, 1.5)
        elif key.endswith(("query_conv.weight", "key_conv.weight")):
            state[key] = 6 * value
        elif key.startswith("cam_attention") and key.endswith(("attn.1.weight", "attn.1.bias")):
            state[key] = 0.3 * value
        elif value.ndim == 4 and key.startswith(("semanticModule_", "conv_sem_", "conv8_", "predict")):
            state[key] = 2 * value
    return {key: torch.from_numpy(value) for key, value in state.items() if not key.startswith(DEAD)}


def check() -> None:
    """Raise RuntimeError unless the twin equals the official network: vectors to 1e-9, FLOPs to 1 %."""
    twin = Twin().double().eval()
    twin.load_state_dict(official())
    from fill import image

    truth = load_file(VECTORS / "msdg.safetensors")
    with torch.no_grad():
        far = (twin(torch.from_numpy(image("msdg/input", (1, 1, 64, 96)))) - truth["eval/out"]).abs().max().item()
    label = torch.from_numpy(image("msdg/train_label", (2, 64, 64)))
    label = (2.5 * (label + 1)).floor().clamp(0, 4).long()
    out = twin.train()(torch.from_numpy(image("msdg/train_input", (2, 1, 64, 64))))
    far = max(far, (loss(out, label) - truth["train/total"]).abs().item())
    if far > 1e-9:
        raise RuntimeError(f"The twin's map or loss is {far:.1e} away from the official one.")

    twin.float().eval()
    x = torch.zeros(1, 1, 256, 256)
    with torch.no_grad(), FlopCounterMode(display=False) as encoder:
        features = twin.encode(x)
    with torch.no_grad(), FlopCounterMode(display=False) as decoder:
        TwinDecoder.forward(twin, features, x)
    both = encoder.get_total_flops() + decoder.get_total_flops()
    for part, counted, stated in (("all", both, 216.9e9), ("decoder", decoder.get_total_flops(), 174.2e9)):
        print(f"{part}: {counted / 1e9:.1f} GFLOPs, official {stated / 1e9:.1f}")
        if abs(counted / stated - 1) > 0.01:
            raise RuntimeError(f"The twin's FLOPs ({part}) are {counted / 1e9:.1f} G, not {stated / 1e9:.1f} G.")
    print(f"map and training loss: largest difference {far:.1e}")


if __name__ == "__main__":
    check()
