"""A plain twin of the official PraNet: its structure and order of work, no rewrite, written to compare speed with.

It counts as PraNet because it passes the parity vectors and its FLOPs at 352 x 352 are the official ones:

    python benchmarks/twin_pranet.py
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


class CB(nn.Module):
    """Convolution and BatchNorm, "same" padding."""

    def __init__(self, channels: int, out_channels: int, kernel: int | tuple[int, int] = 1, dilation: int = 1):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2 * dilation, width // 2 * dilation)
        self.conv = nn.Conv2d(channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class RFB(nn.Module):
    """Receptive field block on the encoder's features themselves: each branch has a 1x1 convolution of its own."""

    def __init__(self, channels: int, width: int = 32):
        super().__init__()
        self.branch0 = nn.Sequential(CB(channels, width))
        for j, n in ((1, 3), (2, 5), (3, 7)):
            steps = CB(channels, width), CB(width, width, (1, n)), CB(width, width, (n, 1)), CB(width, width, 3, n)
            setattr(self, f"branch{j}", nn.Sequential(*steps))
        self.conv_cat = CB(4 * width, width, 3)
        self.conv_res = CB(channels, width)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], dim=1)
        return F.relu(self.conv_cat(branches) + self.conv_res(x))


class Aggregation(nn.Module):
    """Partial decoder that enlarges the deepest map anew for each use."""

    def __init__(self, width: int = 32):
        super().__init__()
        for j in (1, 2, 3, 4):
            setattr(self, f"conv_upsample{j}", CB(width, width, 3))
        self.conv_upsample5 = CB(2 * width, 2 * width, 3)
        self.conv_concat2 = CB(2 * width, 2 * width, 3)
        self.conv_concat3 = CB(3 * width, 3 * width, 3)
        self.conv4 = CB(3 * width, 3 * width, 3)
        self.conv5 = nn.Conv2d(3 * width, 1, 1)

    def forward(self, r4: Tensor, r3: Tensor, r2: Tensor) -> Tensor:
        def up(x: Tensor) -> Tensor:
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)

        m3 = self.conv_upsample1(up(r4)) * r3
        m2 = self.conv_upsample2(up(up(r4))) * self.conv_upsample3(up(r3)) * r2
        t3 = self.conv_concat2(torch.cat([m3, self.conv_upsample4(up(r4))], dim=1))
        t2 = self.conv_concat3(torch.cat([m2, self.conv_upsample5(up(t3))], dim=1))
        return self.conv5(self.conv4(t2))


class TwinDecoder(nn.Module):
    """Features at strides 8, 16, 32 -> the four full-size maps (lateral 5, 4, 3, 2), keys as in the official file."""

    def __init__(self) -> None:
        super().__init__()
        self.rfb2_1, self.rfb3_1, self.rfb4_1 = RFB(512), RFB(1024), RFB(2048)
        self.agg1 = Aggregation()
        self.ra4_conv1 = CB(2048, 256)
        self.ra4_conv2, self.ra4_conv3, self.ra4_conv4 = CB(256, 256, 5), CB(256, 256, 5), CB(256, 256, 5)
        self.ra4_conv5 = CB(256, 1)
        for level, channels in ((3, 1024), (2, 512)):
            setattr(self, f"ra{level}_conv1", CB(channels, 64))
            setattr(self, f"ra{level}_conv2", CB(64, 64, 3))
            setattr(self, f"ra{level}_conv3", CB(64, 64, 3))
            setattr(self, f"ra{level}_conv4", CB(64, 1, 3))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        def scale(x: Tensor, factor: float) -> Tensor:
            return F.interpolate(x, scale_factor=factor, mode="bilinear")

        x2, x3, x4 = features
        g5 = self.agg1(self.rfb4_1(x4), self.rfb3_1(x3), self.rfb2_1(x2))
        lateral5 = scale(g5, 8)

        g = scale(g5, 0.25)
        x = (-1 * torch.sigmoid(g) + 1).expand(-1, 2048, -1, -1).mul(x4)
        x = self.ra4_conv1(x)
        x = F.relu(self.ra4_conv2(x))
        x = F.relu(self.ra4_conv3(x))
        x = F.relu(self.ra4_conv4(x))
        s4 = self.ra4_conv5(x) + g
        lateral4 = scale(s4, 32)

        g = scale(s4, 2)
        x = (-1 * torch.sigmoid(g) + 1).expand(-1, 1024, -1, -1).mul(x3)
        x = self.ra3_conv1(x)
        x = F.relu(self.ra3_conv2(x))
        x = F.relu(self.ra3_conv3(x))
        s3 = self.ra3_conv4(x) + g
        lateral3 = scale(s3, 16)

        g = scale(s3, 2)
        x = (-1 * torch.sigmoid(g) + 1).expand(-1, 512, -1, -1).mul(x2)
        x = self.ra2_conv1(x)
        x = F.relu(self.ra2_conv2(x))
        x = F.relu(self.ra2_conv3(x))
        s2 = self.ra2_conv4(x) + g
        return [lateral5, lateral4, lateral3, scale(s2, 8)]


class Twin(TwinDecoder):
    """The whole network; timm's res2net50d is the official encoder bit for bit (classifier included, unused)."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = timm.create_model("res2net50d", pretrained=False)

    def encode(self, image: Tensor) -> list[Tensor]:
        x = self.resnet.maxpool(self.resnet.act1(self.resnet.bn1(self.resnet.conv1(image))))
        x2 = self.resnet.layer2(self.resnet.layer1(x))
        x3 = self.resnet.layer3(x2)
        return [x2, x3, self.resnet.layer4(x3)]

    def forward(self, image: Tensor) -> list[Tensor]:
        return super().forward(self.encode(image))


def check() -> None:
    """Raise RuntimeError unless the twin equals the official network: vectors to 1e-9, FLOPs to 1 %."""
    sys.path.insert(0, str(VECTORS))
    from fill import fill, image

    twin = Twin().double().eval()
    state = fill(json.loads((VECTORS / "pranet.keys.json").read_text()))
    twin.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    truth = load_file(VECTORS / "pranet.safetensors")
    with torch.no_grad():
        laterals = twin(torch.from_numpy(image("pranet/input", (1, 3, 96, 128))))
    far = max((m - truth[f"eval/lateral_{n}"]).abs().max().item() for n, m in zip((5, 4, 3, 2), laterals, strict=True))
    if far > 1e-9:
        raise RuntimeError(f"The twin's maps are {far:.1e} away from the official ones.")

    twin.float()
    x = torch.zeros(1, 3, 352, 352)
    with torch.no_grad(), FlopCounterMode(display=False) as encoder:
        features = twin.encode(x)
    with torch.no_grad(), FlopCounterMode(display=False) as decoder:
        TwinDecoder.forward(twin, features)
    both = encoder.get_total_flops() + decoder.get_total_flops()
    for part, counted, official in (("all", both, 26.00e9), ("decoder", decoder.get_total_flops(), 3.82e9)):
        print(f"{part}: {counted / 1e9:.3f} GFLOPs, official {official / 1e9:.2f}")
        if abs(counted / official - 1) > 0.01:
            raise RuntimeError(f"The twin's FLOPs ({part}) are {counted / 1e9:.2f} G, not {official / 1e9:.2f} G.")
    print(f"maps: largest difference {far:.1e}")


if __name__ == "__main__":
    check()
