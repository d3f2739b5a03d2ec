"""The budget: how it is written, what is counted, and that resident memory stays within it."""

import subprocess
import sys

import pytest
import torch

from zoo.errors import UserError
from zoo.inference.memory import Cost, Counted, budget, count, parse, told


def test_budgets_are_read_as_people_write_them():
    assert [parse(x) for x in ("4GB", "1.5 gb", "2GiB", "500MB", "123", 7, 2e9)] == [
        4_000_000_000, 1_500_000_000, 2**31, 500_000_000, 123, 7, 2_000_000_000,
    ]  # fmt: skip
    for wrong in ("4 apples", "", "0", -1, 0, True, "GB", float("nan"), None):
        with pytest.raises(UserError, match="memory is"):
            parse(wrong)
    assert all(parse(told(x)) >= x for x in (1, 999_999, 10**9 + 1, 123_456_789_012))


def test_what_is_free_is_told():
    assert budget(torch.device("cpu")) > 10**6


def test_tensors_are_counted_while_they_live():
    weight = torch.rand(1000)
    with torch.inference_mode(), Counted() as counted:
        x = torch.zeros(1000) + weight.view(10, 100).view(-1)  # 2 x 4000 bytes
        x.add_(1)
        y = x.view(10, 100)
        del x, y
        torch.ones(1500)
    assert counted.peak == 8000


def test_cost_is_linear_and_follows_what_grows_faster():
    linear = Cost(((100, 1100), (400, 1400)), 4, 4)
    assert linear(1000) == pytest.approx(2 * 2000)
    attention = Cost(((100, 1000), (400, 16000)), 4, 4)
    assert attention(1600) == pytest.approx(2 * 256000)


def test_a_nets_cost_is_its_largest_moment():
    def run(image, plane):
        a = torch.cat([image, image, plane], 1)  # 7 planes beside the image's 3 and 1 plane
        return {"logits": a.sum(1, keepdim=True)}

    with torch.inference_mode():
        cost = count(run, lambda outputs, inputs: outputs, ("logits",), {"image": 3, "plane": 1}, torch.zeros(()), {})
    assert cost.counted == ((128**2, 48 * 128**2), (256**2, 48 * 256**2))
    assert cost.raw == 4


SCRIPT = """
import json, sys, torch, numpy as np
import zoo
from benchmarks.pairs import grown
torch.set_num_threads(1)
torch.manual_seed(0)
model = zoo.create_model(sys.argv[2], encoder=sys.argv[1], num_classes=2).eval()
image = np.random.default_rng(0).integers(0, 256, (768, 768, 3), np.uint8)
model.predict(image[:64, :64])
print(json.loads(grown(lambda: model.predict(image, memory=int(sys.argv[3]) or None)))["MiB"] * 2**20)
"""


def resident(*args):
    done = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, args)], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_resident_memory_stays_within_the_budget():
    assert resident("resnet18", "unet", 130_000_000) <= 130_000_000  # whole it takes 230 MB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        ("resnet34", "unet"),
        ("convnext_tiny", "unet"),
        ("vit_tiny_patch16_224", "linear"),
        ("mobilenetv3_large_100", "unet"),
    ],
)
def test_resident_memory_of_other_nets_stays_within_the_budget(encoder, decoder):
    assert resident(encoder, decoder, 200_000_000) <= 200_000_000
