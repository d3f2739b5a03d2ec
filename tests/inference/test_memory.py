"""The budget: how it is written, what is counted, and that resident memory stays within it."""

import subprocess
import sys

import pytest
import torch

from zoo.errors import UserError
from zoo.inference.memory import MARGIN, Cost, Counted, budget, count, limits, parse, told


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


def group(folder, most, used, cached, names=("memory.max", "memory.current", "file", "shmem")):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(
        (*names[:2], "memory.stat"), (most, used, f"anon 1\n{names[2]} {cached + 50}\n{names[3]} 50"), strict=True
    ):
        (folder / name).write_text(f"{text}\n")


def told_by(root, text):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(text)


def test_a_limit_of_any_group_above_this_process_counts(tmp_path):
    told_by(tmp_path, "0::/user.slice/job/step\n")
    mount = tmp_path / "sys/fs/cgroup"
    group(mount / "user.slice", 4000, 900, 100)  # leaves 3200
    group(mount / "user.slice/job", "max", 500, 0)
    group(mount / "user.slice/job/step", 5000, 500, 0)
    assert sorted(limits(tmp_path)) == [3200, 4500]


def test_a_container_that_sees_its_own_group_alone_finds_it_at_the_root(tmp_path):
    told_by(tmp_path, "0::/\n")
    group(tmp_path / "sys/fs/cgroup", 1000, 1500, 0)
    assert list(limits(tmp_path)) == [0]


@pytest.mark.parametrize("seen", ["docker/1f", ""])
def test_limits_of_version_1_count_too(tmp_path, seen):
    told_by(tmp_path, "12:cpu,cpuacct:/docker/1f\n5:memory:/docker/1f\n1:name=systemd:/docker/1f\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem")
    group(tmp_path / "sys/fs/cgroup/memory" / seen, 2000, 700, 200, names)
    assert list(limits(tmp_path)) == [1500]


def test_systems_without_groups_have_no_limits(tmp_path):
    assert list(limits(tmp_path)) == []
    told_by(tmp_path, "0::/nowhere\n")
    assert list(limits(tmp_path)) == []


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
    assert linear(1000) == pytest.approx(MARGIN * 2000, abs=1)
    attention = Cost(((100, 1000), (400, 16000)), 4, 4)
    assert attention(1600) == pytest.approx(MARGIN * 256000, abs=1)


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
