"""`zoo list`, `zoo show` and `zoo doctor` of what needs torch."""

import pytest

from zoo.cli import main


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["models"], "pranet"),
        (["models", "pra*", "--task", "segmentation"], "pranet"),
        (["decoders"], "reverse_attention"),
        (["encoders", "resnet3"], "resnet34"),
    ],
)
def test_names_are_listed_one_on_a_line(words, name, capsys):
    assert main(["list", *words]) == 0
    assert name in [line.split()[0] for line in capsys.readouterr().out.splitlines()]


def test_a_model_is_shown_with_paper_parts_parameters_macs_and_licences(capsys):
    assert main(["show", "pranet"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert "2006.11392" in shown["paper"]
    assert (shown["encoder"], shown["decoder"]) == ("res2net50d", "reverse_attention")
    assert shown["parameters"].startswith("30.50 M")  # the live parameters of the official checkpoint
    macs, _, size = shown["MACs"].split(maxsplit=2)
    assert float(macs) <= 13.0  # the official code's: 26.0 GFLOPs
    assert size == "at 352x352"


def test_a_decoder_and_an_encoder_are_shown(capsys):
    assert main(["show", "unet"]) == 0
    assert "upsample nearest" in capsys.readouterr().out
    assert main(["show", "resnet18"]) == 0
    shown = capsys.readouterr().out
    assert "64, 128, 256, 512 at strides 4, 8, 16, 32" in shown
    assert "parameters  11.18 M" in shown  # 11 689 512 of the paper's ImageNet net, less the 513 000 of its head
    assert "a1_in1k (apache-2.0)" in shown


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("resnet18", "any size"),
        ("vit_tiny_patch16_224", "any size, padded to multiples of 16 inside"),
        ("levit_128s", "any size, resized to 224x224 inside"),
    ],
)
def test_an_encoder_says_what_becomes_of_an_image(name, takes, capsys):
    assert main(["show", name]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["image"] == takes


@pytest.mark.parametrize(
    ("name", "near"),
    [("pranett", "'pranet'"), ("resnet_34", "'resnet34'"), ("unet_folder", "'segmentation/unet_folder'")],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, near, capsys):
    assert main(["show", name]) == 2
    assert near in capsys.readouterr().err


def test_the_doctor_tells_versions_devices_and_that_training_works(capsys):
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("visionzoo", "torch 2.", "timm 1.", "cpu", "works"))
