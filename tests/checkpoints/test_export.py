"""A program is the model as a file: compared before it is there, the same answers after, and what stands in the way."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from tests.checkpoints.export_table import FORMATS, MODELS, differences, trained_a_little
from tests.kinds import KINDS, register
from zoo.checkpoints import export as exporting
from zoo.checkpoints import programs
from zoo.encoders.tracing import same_padding
from zoo.errors import UserError
from zoo.inference.answer import Answers
from zoo.inference.sources import Item

UNET = dict(name="unet", encoder="resnet10t", decoder={"widths": [16, 16, 8, 8, 8]}, num_classes=3)


@pytest.fixture(scope="module")
def model():
    return trained_a_little(**UNET)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """Both formats of one model."""
    folder = tmp_path_factory.mktemp("exported")
    for kind in FORMATS:
        zoo.export(model, folder / f"model.{kind}")
    return {kind: folder / f"model.{kind}" for kind in FORMATS}


def photos():
    """Ten photographs of odd sizes, among them tiny ones and lines of one pixel."""
    from skimage import data

    astronaut, coffee, cat = data.astronaut(), data.coffee(), data.chelsea()
    sizes = [(101, 75), (20, 20), (1, 57), (33, 1), (131, 203), (64, 97), (7, 150), (250, 111), (2, 2), (1, 1)]
    sources = [astronaut, coffee, cat]
    return [sources[i % 3][40 : 40 + height, 60 : 60 + width].copy() for i, (height, width) in enumerate(sizes)]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_program_predicts_as_its_model_on_photographs_of_any_size(model, exported, kind):
    program = zoo.load_program(exported[kind], device="cpu")
    for photo in photos():
        ours, theirs = model.predict(photo), program.predict(photo)
        np.testing.assert_allclose(theirs.probabilities, ours.probabilities, rtol=0, atol=1e-4)
        first, second = np.sort(ours.probabilities, axis=0)[::-1][:2]
        assert ((ours.mask == theirs.mask) | (first - second <= 1e-4)).all()
        assert (theirs.mask.shape, theirs.mask.dtype) == (photo.shape[:2], ours.mask.dtype)
        assert (theirs.class_colors, theirs.class_names) == (ours.class_colors, ours.class_names)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_program_is_tiled_as_its_model_is(model, exported, kind):
    def plan(net, memory):
        cpu = torch.device("cpu")
        answers = Answers(net, cpu, precision="32", tta="none", threshold=None, memory=memory, drop=())
        return answers._plan(Item(None, np.zeros((700, 900, 3), np.uint8), {}), 1)

    program = zoo.load_program(exported[kind], device="cpu")
    plans = [plan(model, memory) for memory in (40_000_000, 80_000_000)]
    assert plans == [plan(program, memory) for memory in (40_000_000, 80_000_000)]
    assert plans[0].side < plans[1].side


def test_a_file_tells_its_config_versions_opset_and_check(model, exported):
    import onnx

    proto = onnx.load(exported["onnx"])
    facts = json.loads({entry.key: entry.value for entry in proto.metadata_props}["visionzoo"])
    assert facts["config"] == model.config
    assert {"visionzoo", "torch", "onnx"} <= set(facts["versions"])
    assert facts["opset"] == proto.opset_import[0].version == 20
    assert 0 < facts["check"]["largest"]["logits"] < 1e-4
    assert [value.name for value in proto.graph.input] == ["image"]
    assert [value.name for value in proto.graph.output] == ["logits", "mask", "probabilities"]
    sides = [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["batch", 3, "height", "width"]

    extra = {"visionzoo.json": ""}
    program = torch.export.load(exported["pt2"], extra_files=extra)
    assert json.loads(extra["visionzoo.json"])["config"] == model.config
    image = torch.rand(1, 3, 20, 33)  # as anybody runs it who has torch alone
    torch.testing.assert_close(program.module()(image=image)["mask"], model.answer(image)["mask"])


@pytest.mark.slow
def test_a_threshold_is_set_at_call_time_in_a_program_too(tmp_path):
    model = trained_a_little(**{**UNET, "num_classes": 1})
    zoo.export(model, tmp_path / "m.pt2")
    program, photo = zoo.load_program(tmp_path / "m.pt2", device="cpu"), photos()[0]
    for threshold in (None, 0.3):
        np.testing.assert_array_equal(
            program.predict(photo, threshold=threshold).mask, model.predict(photo, threshold=threshold).mask
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hole", "guided"])
def test_what_a_task_takes_beside_the_image_is_an_input_by_name(kind, tmp_path):
    with register():
        torch.manual_seed(0)
        task, _, encoder = KINDS[kind]
        model = zoo.create_model(task=task.name, encoder=encoder, decoder=f"test_{kind}", num_classes=3).eval()
        facts = zoo.export(model, tmp_path / "m.pt2")
        (name,) = task.planes
        assert facts["inputs"] == ["image", name]
        photo = photos()[0].astype(np.float32) / 255
        plane = np.zeros((*photo.shape[:2], task.planes[name]), np.float32)
        plane[10:30, 20:40] = 1
        program = zoo.load_program(tmp_path / "m.pt2", device="cpu")
        ours, theirs = model.predict(photo, **{name: plane}), program.predict(photo, **{name: plane})
        for key, array in ours.arrays.items():
            np.testing.assert_allclose(theirs[key], array, rtol=0, atol=1e-4)
        with pytest.raises(UserError, match=f"needs `{name}`"):
            program.predict(photo)


@pytest.mark.slow
def test_a_net_of_windows_exports_at_a_size_that_is_given_and_says_so(tmp_path):
    spec = {"name": "swin_tiny_patch4_window7_224", "depths": [1, 1, 1, 1], "embed_dim": 24, "num_heads": [1, 1, 2, 2]}
    model = trained_a_little(name="linear", encoder=spec)
    with pytest.raises(UserError, match=r"cuts its maps into windows.*--size 512x512"):
        zoo.export(model, tmp_path / "m.pt2")
    zoo.export(model, tmp_path / "m.pt2", size=(64, 96))
    program = zoo.load_program(tmp_path / "m.pt2", device="cpu")
    fitting = photos()[4][:64, :96]
    np.testing.assert_allclose(
        program.predict(fitting).probabilities, model.predict(fitting).probabilities, rtol=0, atol=1e-4
    )
    with pytest.raises(UserError, match=r"takes images of 64x96 alone; this one is 101x75.*--size 101x75"):
        program.predict(photos()[0])


@pytest.fixture(scope="module")
def fixed(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("fixed") / "m.pt2"
    zoo.export(model, path, size=(64, 96))
    return zoo.load_program(path, device="cpu")


def test_a_program_of_one_size_answers_within_a_budget_without_being_run_at_others(model, fixed):
    photo = photos()[4][:64, :96]
    expected = model.predict(photo).probabilities
    for memory in ("40MB", None):
        for prediction in fixed.predict([photo] * 3, memory=memory, batch_size=3):
            np.testing.assert_allclose(prediction.probabilities, expected, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match=r"64x96 needs about \w+, memory is 1MB, and the program has one size") as error:
        fixed.predict(photo, memory="1MB")
    assert fixed.predict(photo, memory=re.search(r"about (\w+),", str(error.value))[1]).mask.shape == (64, 96)
    with pytest.raises(UserError, match="takes images of 64x96 alone"):
        fixed.predict(photos()[0], memory="1MB")


def test_turns_that_a_program_of_one_size_cannot_take_are_told_before_an_image_is_read(fixed, tmp_path):
    with pytest.raises(UserError, match=r"^tta='d4' turns 64x96 into 96x64, .*tta='flips', or .* square program"):
        next(fixed.predict(iter([tmp_path / "none.png"]), tta="d4"))


class Wrong(nn.Module):
    """Answers otherwise once it is traced."""

    strides = (4,)

    def __init__(self, channels, num_outputs, *, off=1e-3):
        super().__init__()
        self.off, self.head = off, nn.Conv2d(channels[0], num_outputs, 1)

    def forward(self, features, image):
        logits = self.head(features[0])
        return {"logits": logits + self.off if torch.compiler.is_compiling() else logits}


def test_a_program_that_answers_otherwise_is_not_written(tmp_path):
    model = trained_a_little(**UNET)
    model.decoder = Wrong(model.encoder.channels, 3)
    with pytest.raises(UserError, match=r"'logits' differs from the model's at .*: 0.001; no file was written"):
        zoo.export(model.eval(), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_a_decision_may_differ_where_its_scores_are_as_close_as_the_tolerance():
    class Task:
        def margins(self, answer):
            return {"mask": torch.tensor([[[self.margin]]])}

    class Model:
        in_channels, task = 3, Task()

        def example_inputs(self, image):
            return {}

        def answer(self, image):
            return {"mask": torch.tensor([[[1]]])}

    def run(inputs, names):
        return {"mask": torch.tensor([[[2]]])}

    opened = programs.Exported({"size": [4, 4], "outputs": ["mask"]}, run, torch.device("cpu"))
    Model.task.margin = 5e-5
    assert exporting.compare(Model(), opened)["ties"] == len(exporting.BATCHES)
    Model.task.margin = 5e-3
    with pytest.raises(UserError, match="'mask' differs"):
        exporting.compare(Model(), opened)


def test_paths_that_cannot_be_written_are_told_before_anything_is_traced(model, tmp_path, monkeypatch):
    there = tmp_path / "m.onnx"
    there.write_bytes(b"kept")
    for path, match in (
        (there, "exists.*--force"),
        (tmp_path / "m.pth", r"ends in '.pth'"),
        (tmp_path / "none" / "m.onnx", "no folder"),
    ):
        with pytest.raises(UserError, match=match):
            zoo.export(model, path)
    assert there.read_bytes() == b"kept"
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match="may not be written"):
        zoo.export(model, tmp_path / "other.pt2")


@pytest.mark.parametrize("opset", [5, 99])
def test_an_opset_that_is_not_reached_is_told_and_nothing_else(model, tmp_path, opset, capfd, caplog):
    with pytest.raises(UserError, match=rf"opset {opset} .*leaves it at \d+\); take --opset \d+"):
        zoo.export(model, tmp_path / "m.onnx", opset=opset)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_what_is_no_model_is_told_with_what_makes_one(fixed, tmp_path):
    for wrong, match in (("runs/1", r"zoo\.load_model\('runs/1'\)"), (fixed, "is a Program"), (None, "NoneType")):
        with pytest.raises(UserError, match=match):
            zoo.export(wrong, tmp_path / "m.onnx")


def test_packages_that_onnx_takes_are_named_with_the_command_that_installs_them(model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"'onnxscript', which is not installed; pip install 'visionzoo\[onnx\]'"):
        zoo.export(model, tmp_path / "m.onnx")


def test_a_device_that_is_not_there_and_weights_that_onnx_cannot_hold_are_told(model, exported, tmp_path, monkeypatch):
    for kind in FORMATS:
        with pytest.raises(UserError, match="finds no device 'tpu'"):
            zoo.load_program(exported[kind], device="tpu")
    monkeypatch.setattr(exporting, "ONNX_LIMIT", 1000)
    with pytest.raises(UserError, match=r"an ONNX file holds 2; export a \.pt2"):
        zoo.export(model, tmp_path / "m.onnx")


def test_files_that_are_damaged_or_not_ours_are_told_apart(exported, tmp_path):
    import onnx

    proto = onnx.load(exported["onnx"])
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(UserError, match="not written by visionzoo"):
        zoo.load_program(tmp_path / "foreign.onnx")
    for kind in FORMATS:
        whole = exported[kind].read_bytes()
        (tmp_path / f"half.{kind}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="may be damaged"):
            zoo.load_program(tmp_path / f"half.{kind}", device="cpu")
        with pytest.raises(UserError, match="There is no exported program"):
            zoo.load_program(tmp_path / f"none.{kind}")


def test_same_padding_is_timms():
    from timm.layers.padding import get_same_padding

    for length in range(1, 40):
        for kernel, stride, dilation in ((3, 2, 1), (5, 2, 1), (1, 2, 1), (3, 1, 2), (7, 4, 1), (2, 3, 1)):
            ours = same_padding(length, kernel, stride, dilation)
            assert ours == get_same_padding(length, kernel, stride, dilation)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_models_of_the_table_export(name, kind):
    assert max(differences(trained_a_little(**MODELS[name]), kind).values()) <= 1e-4
