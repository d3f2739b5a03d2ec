"""Checkpoint folders and files of weights: written aside, read without running anything."""

import os
import pickle

import pytest
import torch

from zoo.checkpoints import folder
from zoo.errors import UserError
from zoo.weights import read_state


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/should-not-exist-visionzoo",)


def test_what_is_written_is_read(tmp_path):
    state = {"a": torch.rand(2, 3), "b": torch.arange(3)}
    folder.write(tmp_path / "x", state, {"name": "m"})
    config, again = folder.read(tmp_path / "x")
    assert config == {"name": "m"}
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    folder.write(tmp_path, {"a": torch.zeros(1)}, {"n": 1})
    with pytest.raises(TypeError):
        folder.write(tmp_path, {"a": torch.ones(1)}, {"n": object()})
    config, state = folder.read(tmp_path)
    assert config == {"n": 1}
    assert state["a"] == 0
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
    ],
)
def test_torch_files_are_read(tmp_path, wrap):
    torch.save(wrap({"a": torch.ones(2)}), tmp_path / "w.pth")
    assert read_state(tmp_path / "w.pth")["a"].sum() == 2


def test_code_in_a_file_is_never_run(tmp_path):
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="never run"):
        read_state(tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError):
        read_state(tmp_path / "plain.pth")
    assert not os.path.exists("/tmp/should-not-exist-visionzoo")


def test_damaged_files_are_one_sentence(tmp_path):
    for name in ("a.safetensors", "a.pth"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(UserError, match=name):
            read_state(tmp_path / name)
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    with pytest.raises(UserError, match="web page"):
        read_state(tmp_path / "page.pth")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="no state_dict"):
        read_state(tmp_path / "list.pt")
    with pytest.raises(UserError, match="no file of weights"):
        read_state(tmp_path / "nothing.pth")
    folder.write(tmp_path / "run", {"a": torch.zeros(1)}, {})
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        folder.read(tmp_path / "run")


def test_weights_that_share_memory_are_written(tmp_path):
    shared = torch.rand(3)
    folder.write(tmp_path, {"a": shared, "b": shared}, {})
    assert torch.equal(folder.read(tmp_path)[1]["b"], shared)
