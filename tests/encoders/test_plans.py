"""Plans without asking the net: the package's table, the user's cache, and what happens where neither has it."""

import gzip
import json
import random
import subprocess
import sys
from dataclasses import replace

import pytest
import timm as the_timm
import torch

from zoo.encoders import create_encoder, plans, probe, timm
from zoo.errors import UserError

SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}  # a resnet18 that no table has
KINDS = {
    "resnet18": "free",
    "shvit_s1": "free",  # a stride of 64
    "inception_v3": "free",  # wants some pixels
    "vit_tiny_patch16_224": "pad",
    "csatv2": "pad",  # of three channels alone
    "levit_128s": "fixed",
    "crossvit_tiny_240": "fixed",  # branches: a parameter may feed one level and not the next
}
EVERY = (1, 2, 4, 8, 16, 32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of plans of a user who has none yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    timm._plan.cache_clear()
    return tmp_path / "visionzoo/plans"


@pytest.fixture
def asked(monkeypatch, cache):
    """The names of the nets that were asked."""
    names = []
    ask = probe.ask
    monkeypatch.setattr(probe, "ask", lambda name, arguments: names.append(name) or ask(name, arguments))
    return names


@pytest.mark.parametrize("name", KINDS)
def test_no_net_of_the_table_is_asked_whatever_strides_and_channels_are_wanted(name, asked, cache):
    for strides in (EVERY, (4, 8, 16, 32), (8,)):
        for in_channels in (1, 3, 5):
            found = timm.plan(name, strides, in_channels)
            assert found.kind == KINDS[name]
            assert found.strides == strides
    assert asked == []
    assert not cache.exists()


@pytest.mark.parametrize("name", KINDS)
def test_an_encoder_by_the_table_gives_every_level_of_five_channels_and_trains_all_that_it_keeps(name, asked):
    encoder = create_encoder({"name": name}, in_channels=5, strides=EVERY).train()
    features = encoder(torch.rand(2, 5, 33, 200))
    assert [tuple(f.shape) for f in features] == [
        (2, c, -(-33 // s), -(-200 // s)) for c, s in zip(encoder.channels, EVERY, strict=True)
    ]
    sum(f.square().mean() for f in features).backward()
    assert [key for key, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []
    assert asked == []


@pytest.mark.parametrize("name", KINDS)
def test_the_table_says_what_the_net_says(name):
    assert plans.shipped(name, {}) == probe.find(name, {})


@pytest.mark.slow
def test_a_sample_of_the_table_says_what_the_nets_say():
    names = [json.loads(line)["name"] for line in plans.table().splitlines()[1:]]
    for name in random.Random(2).sample(names, 40):
        assert plans.shipped(name, {}) == probe.find(name, {}), name


def test_arguments_that_the_table_has_been_made_with_change_nothing(asked):
    whole = timm.plan("vit_tiny_patch16_224", EVERY)
    assert whole.arguments == {"dynamic_img_size": True}
    assert timm.plan("vit_tiny_patch16_224", EVERY, **whole.arguments) == whole
    assert asked == []


def test_weights_of_another_size_than_the_nets_own_are_not_in_the_table(monkeypatch, asked):
    assert plans.shipped("levit_128s.fb_dist_in1k", {}) == plans.shipped("levit_128s", {})
    other = replace(the_timm.get_pretrained_cfg("levit_128s.fb_dist_in1k"), input_size=(3, 256, 256))
    monkeypatch.setattr(the_timm, "get_pretrained_cfg", lambda name: other)
    assert plans.shipped("levit_128s.fb_dist_in1k", {}) is None


def test_a_net_that_the_table_does_not_have_is_asked_once_and_kept_for_the_next_process(asked, cache):
    found = timm.plan("resnet18", (4, 8), **SMALL)
    assert asked == ["resnet18"]
    assert len(list(cache.iterdir())) == 1
    timm._plan.cache_clear()
    assert timm.plan("resnet18", (4, 8), **SMALL) == found
    assert timm.plan("resnet18", EVERY, 5, **SMALL).strides == EVERY
    assert asked == ["resnet18"]
    code = (
        "from zoo.encoders import probe, timm\n"
        "probe.ask = lambda *_: 1 / 0\n"
        f"print(timm.plan('resnet18', (4, 8), **{SMALL}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == repr(found), done.stderr


def test_nothing_is_kept_of_arguments_that_are_wrong(cache):
    with pytest.raises(UserError, match="no option 'layer'"):
        timm.plan("resnet18", (4, 8), layer=[1])
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, asked):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    first = timm.plan("resnet18", (4, 8), **SMALL)
    timm._plan.cache_clear()
    assert timm.plan("resnet18", (4, 8), **SMALL) == first
    assert asked == ["resnet18", "resnet18"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entry: "{",
        lambda entry: b"\xff\xfe",
        lambda entry: "[]",
        lambda entry: entry | {"key": entry["key"] | {"timm": "0.9.0"}},
        lambda entry: entry | {"key": entry["key"] | {"format": 0}},
        lambda entry: entry | {"key": entry["key"] | {"name": "resnet34"}},
        lambda entry: entry | {"facts": {"taps": []}},
    ],
)
def test_a_cache_file_that_is_broken_or_meant_for_something_else_is_ignored_and_written_anew(spoil, asked, cache):
    found = timm.plan("resnet18", (4, 8), **SMALL)
    file = next(cache.iterdir())
    good = file.read_bytes()
    bad = spoil(json.loads(good))
    file.write_bytes(bad if isinstance(bad, bytes) else (bad if isinstance(bad, str) else json.dumps(bad)).encode())
    timm._plan.cache_clear()
    assert timm.plan("resnet18", (4, 8), **SMALL) == found
    assert asked == ["resnet18", "resnet18"]
    assert file.read_bytes() == good


def test_a_table_for_another_timm_is_not_used(monkeypatch, asked, cache):
    monkeypatch.setattr(the_timm, "__version__", "0.0.1")
    timm.plan("resnet10t", (4, 8))
    assert asked == ["resnet10t"]
    timm._plan.cache_clear()
    monkeypatch.setattr(the_timm, "__version__", "0.0.2")
    timm.plan("resnet10t", (4, 8))
    assert asked == ["resnet10t", "resnet10t"]


def test_a_net_that_somebody_registered_with_timm_is_asked_every_time(monkeypatch, asked, cache):
    monkeypatch.setattr(the_timm, "model_entrypoint", lambda name: lambda: None)
    plans.find("resnet10t", {})
    assert asked == ["resnet10t"]
    assert not cache.exists()


def test_the_table_is_of_this_format_in_order_and_under_a_megabyte():
    header, *lines = plans.table().splitlines()
    names = [json.loads(line)["name"] for line in lines]
    assert json.loads(header)["format"] == plans.FORMAT
    assert names == sorted(set(names))
    if json.loads(header)["timm"] == the_timm.__version__:
        assert set(names) == set(the_timm.list_models())
    assert len(gzip.compress(plans.table().encode())) < 1_000_000


def test_a_table_is_the_same_bytes_whatever_the_order_and_is_read_back(tmp_path, monkeypatch):
    entries = [(name, plans.shipped(name, {})) for name in KINDS]
    plans.write_table(tmp_path / "one", entries)
    plans.write_table(tmp_path / "two", entries[::-1])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    text = gzip.decompress((tmp_path / "one").read_bytes()).decode()
    monkeypatch.setattr(plans, "table", lambda: text)
    assert [(name, plans.shipped(name, {})) for name in KINDS] == entries
    assert plans.shipped("resnet34", {}) is None
