"""create_model, load_model, convert_weights: names and options in, a model out."""

import json

import numpy as np
import pytest
import torch

import zoo
from zoo.errors import UserError

SMALL = dict(encoder="resnet10t", decoder={"name": "unet", "widths": [16, 16, 8, 8, 8]})


def test_a_decoders_name_alone_is_a_model():
    model = zoo.create_model("unet", encoder="resnet10t")
    assert model.training
    assert model.config["decoder"]["name"] == "unet"
    assert model(torch.rand(2, 3, 64, 64))["logits"].shape == (2, 1, 64, 64)


@pytest.mark.parametrize("size", [(1, 1), (20, 20), (97, 65), (1, 130)])
def test_answers_have_the_images_size(size):
    model = zoo.create_model(**SMALL, num_classes=3).eval()
    answer = model.answer(torch.rand(1, 3, *size))
    assert answer["logits"].shape == answer["probabilities"].shape == (1, 3, *size)
    assert answer["mask"].shape == (1, *size)


def test_every_key_of_a_named_model_can_be_overridden():
    small = {"encoder": "resnet10t", "decoder": {"width": 8, "ra_widths": [8, 8, 8]}}
    model = zoo.create_model("pranet", **small, num_classes=2, in_channels=1, input_size=None)
    assert model.config["input_size"] is None
    assert model.config["decoder"]["name"] == "reverse_attention"
    assert model.config["decoder"]["width"] == 8
    assert model.eval()(torch.rand(1, 1, 50, 70))["logits"].shape == (1, 2, 50, 70)


def test_config_is_json_and_rebuilds_the_model():
    task = {"name": "segmentation", "threshold": 0.3, "class_names": ["polyp"]}
    model = zoo.create_model("pranet", encoder="resnet10t", decoder={"width": 8, "ra_widths": [8, 8, 8]}, task=task)
    config = json.loads(json.dumps(model.config))
    again = zoo.create_model(**config)
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    image = torch.rand(1, 3, 40, 56)
    assert torch.equal(again.eval()(image)["logits"], model.eval()(image)["logits"])


def test_a_saved_model_loads_in_eval_mode_and_answers_the_same(tmp_path):
    model = zoo.create_model(**SMALL, num_classes=4, in_channels=5)
    model(torch.rand(2, 5, 64, 64))  # running statistics move
    model.save(tmp_path / "checkpoint")
    again = zoo.load_model(tmp_path / "checkpoint")
    assert not again.training
    image = torch.rand(1, 5, 45, 33)
    assert torch.equal(again(image)["logits"], model.eval()(image)["logits"])
    assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir()) == ["config.json", "model.safetensors"]


def test_independent_classes_reach_the_decoder():
    task = {"name": "segmentation", "mode": "multilabel"}
    model = zoo.create_model("reverse_attention", encoder="resnet10t", task=task, num_classes=3)
    assert model.decoder.exclusive is False
    assert "exclusive" not in model.config["decoder"]


def test_weights_of_a_checkpoint_folder_or_file_go_into_a_model(tmp_path):
    folder = zoo.create_model(**SMALL).save(tmp_path / "a")
    for source in (folder, folder / "model.safetensors"):
        model = zoo.create_model(**SMALL, weights=source)
        saved = zoo.load_model(folder).state_dict()
        assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(name="pranett"), ["pranett", "pranet"]),
        (dict(decoder="unett", encoder="resnet10t"), ["unett", "unet"]),
        (dict(decoder="unet", encoder="resnet35"), ["resnet35", "resnet34"]),
        (dict(decoder="unet"), ["no encoder"]),
        (dict(encoder="resnet10t"), ["no decoder"]),
        (dict(decoder="unet", encoder="resnet10t", task=None), ["no task", "segmentation"]),
        (dict(decoder={"name": "unet", "width": 3}, encoder="resnet10t"), ["'width'", "widths"]),
        (dict(decoder="unet", encoder="resnet10t", task="segmentatoin"), ["segmentatoin", "segmentation"]),
        (dict(decoder="unet", encoder="resnet10t", num_classes=0), ["num_classes is 0"]),
        (dict(decoder="unet", encoder="resnet10t", in_channels="3"), ["in_channels is '3'"]),
        (dict(decoder="unet", encoder="resnet10t", input_size=[352]), ["input_size is [352]"]),
        (
            dict(decoder="unet", encoder="resnet10t", mean=[0.5]),
            ["mean is [0.5]; give a number for each of the 3 channels"],
        ),
        (dict(decoder="unet", encoder="resnet10t", input_size=352), ["input_size is 352"]),
        (dict(decoder="unet", encoder="resnet10t", std=[1, 0, 1]), ["std is [1, 0, 1]"]),
        (dict(decoder="unet", encoder="resnet10t", pyramid=0), ["pyramid rule 0"]),
        (dict(decoder="unet", encoder="resnet10t", weights="nowhere.pth"), ["nowhere.pth"]),
    ],
)
def test_mistakes_are_one_sentence(options, words):
    with pytest.raises(UserError) as error:
        zoo.create_model(**options)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_channels_and_ranks_are_refused():
    model = zoo.create_model(**SMALL)
    for shape in [(1, 4, 32, 32), (3, 32, 32)]:
        with pytest.raises(UserError, match=r"takes images \(B, 3, H, W\)"):
            model(torch.rand(*shape))


def test_a_checkpoint_of_another_model_is_refused_with_its_keys(tmp_path):
    zoo.create_model(**SMALL).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"in_channels": 4, "mean": None, "std": None}))
    with pytest.raises(UserError, match="misshapen"):
        zoo.load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"colour": 2}))
    with pytest.raises(UserError, match="'colour'"):
        zoo.load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        zoo.load_model(tmp_path)
    with pytest.raises(UserError, match="no checkpoint at"):
        zoo.load_model(tmp_path / "nothing")


def test_an_unknown_task_is_named_in_lists():
    with pytest.raises(UserError, match="'segmentatoin' - did you mean 'segmentation'"):
        zoo.list_models(task="segmentatoin")
    with pytest.raises(UserError, match="'segmentatoin' - did you mean 'segmentation'"):
        zoo.list_encoders(task="segmentatoin")


def test_lists_take_patterns_and_tasks():
    assert "pranet" in zoo.list_models(task="segmentation")
    assert {"unet", "reverse_attention"} <= set(zoo.list_decoders())
    assert "resnet34" in zoo.list_encoders("resnet*")
    assert all("convnext" in name for name in zoo.list_encoders("convnext"))
    assert zoo.list_models("nothing-like-it") == []


def test_smp_unet_weights_convert_and_give_the_same_output():
    smp = pytest.importorskip("segmentation_models_pytorch")
    theirs = smp.Unet("resnet18", encoder_weights=None, classes=3).eval()
    generator = np.random.default_rng(0)
    for value in theirs.state_dict().values():  # running statistics that are not the identity
        if value.ndim == 1 and value.dtype == torch.float32:
            value.copy_(torch.from_numpy(generator.uniform(0.5, 1.5, value.shape)))
    ours = zoo.create_model("unet", encoder="resnet18", num_classes=3, mean=[0, 0, 0], std=[1, 1, 1]).eval()
    ours.load_state_dict(zoo.convert_weights("unet", theirs.state_dict(), encoder="resnet18", num_classes=3))
    image = torch.rand(2, 3, 96, 160)
    with torch.inference_mode():
        a, b = theirs(image), ours(image)["logits"]
    assert (a - b).abs().max() <= 1e-5 * max(1, a.abs().max())


def test_pranet_refuses_weights_that_are_not_pranets():
    with pytest.raises(UserError, match=r"unknown: .*missing: "):
        zoo.convert_weights("pranet", {"conv.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="No rules"):
        zoo.convert_weights("reverse_attention", {})
