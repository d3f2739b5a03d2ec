"""The command line as a user meets it, in processes of their own."""

import os
import subprocess
import sys

import pytest

from zoo.cli.train import find_run

LIGHT = """
import atexit, sys
heavy = ("torch", "timm", "lightning", "torchmetrics", "albumentations", "matplotlib", "torchvision")
atexit.register(lambda: print("heavy:", [m for m in heavy if m in sys.modules], file=sys.stderr))
from zoo.cli import main
sys.exit(main(sys.argv[1:]))
"""


def zoo(*words, cwd, code=None):
    start = ["-c", code] if code else ["-m", "zoo"]
    env = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, *start, *words], capture_output=True, text=True, cwd=cwd, env=env, timeout=300
    )


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["list", "recipes"], 0),
        (["list", "data"], 0),
        (["show", "segmentation/demo"], 0),
        (["show", "folder"], 0),
        (["train", "segmentation/demo", "--help"], 0),
        (["copy", "segmentation/demo"], 0),
        (["trian"], 2),
        (["list", "modles"], 2),
        (["show", "segmentation/dem"], 2),
        (["train", "segmentation/demo", "--data.siez", "3"], 2),
        (["train", "segmentation/demo", "--data.batch_size", "none"], 2),
        (["predict", "runs/x", "photo.jpg", "-o", "out"], 2),
        (["predict", "runs/x", "photo.jpg", "-o", "out", "--devcie", "cpu"], 2),
        (["test", "runs/segmentation/demo/7"], 2),
    ],
)
def test_help_lists_and_mistakes_import_nothing_heavy(words, code, tmp_path):
    done = zoo(*words, cwd=tmp_path, code=LIGHT)
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "heavy: []"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "zoo: There is no command 'trian' - did you mean 'train'?"),
        (["list", "modles"], "did you mean 'models'"),
        (["list", "recipes", "nothing"], "No recipes match 'nothing'"),
        (["list", "data", "--task", "segmentation"], "--task chooses among models and decoders"),
        (["show"], "The following arguments are required: NAME"),
        (
            ["predict", "r", "x", "-o", "y", "--devise", "cpu"],
            "'zoo predict' takes no '--devise' - did you mean '--device'",
        ),
        (["predict", "r", "x"], "required: -o/--out"),
        (["predict", "r", "x", "-o", "y", "--batch_size", "two"], "'two' is no whole number"),
        (["train", "--data.root", "photos/"], "stands before the recipe"),
        (["train", "demo"], "did you mean 'segmentation/demo'"),
        (["test", "runs/none"], "Nothing has been trained here yet"),
        (["copy", "segmentation/demo", "recipe.txt"], "doesn't end in .yaml"),
        (["copy", "segmentation/demo", "no/such/folder.yaml"], "cannot be written: No such file or directory"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(words, told, tmp_path):
    done = zoo(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_zoo_alone_shows_the_commands(tmp_path):
    done = zoo(cwd=tmp_path)
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("train", "test", "predict", "list", "show", "copy", "doctor"))


def test_a_recipes_help_lists_its_keys_with_what_is_set_on_the_command_line(tmp_path):
    done = zoo("train", "segmentation/demo", "--data.batch_size", "3", "--help", cwd=tmp_path)
    assert "--data.batch_size 3\n        images in a batch" in done.stdout
    assert '--model.encoder {"name": "tf_efficientnet_lite0"}' in done.stdout


def test_a_recipe_is_shown_as_it_is_in_its_file_and_copied_once(tmp_path):
    shown = zoo("show", "segmentation/demo", cwd=tmp_path).stdout
    copied = zoo("copy", "segmentation/demo", cwd=tmp_path)
    assert copied.returncode == 0
    text = (tmp_path / "demo.yaml").read_text()
    assert text.startswith("# zoo train demo.yaml")
    assert text == shown.replace("zoo train segmentation/demo", "zoo train demo.yaml")
    (tmp_path / "demo.yaml").write_text("mine")
    again = zoo("copy", "segmentation/demo", cwd=tmp_path)
    assert again.returncode == 2
    assert "'demo.yaml' exists and is left as it is" in again.stderr
    assert (tmp_path / "demo.yaml").read_text() == "mine"


def test_a_run_that_does_not_exist_is_answered_with_those_that_do(tmp_path):
    run = tmp_path / "runs/segmentation/demo/1"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    done = zoo("test", "runs/segmentation/demo/2", cwd=tmp_path)
    assert done.returncode == 2
    assert "Runs here: runs/segmentation/demo/1." in done.stderr
    above = zoo("predict", "runs/segmentation", "x.png", "-o", "out", cwd=tmp_path)
    assert "is no run or checkpoint" in above.stderr
    assert "runs/segmentation/demo/1" in above.stderr


def test_a_recipes_folder_stands_for_its_newest_run_with_a_checkpoint(tmp_path):
    for number in ("2", "10", "11"):
        (tmp_path / number).mkdir()
    for number in ("2", "10"):
        (tmp_path / number / "config.json").write_text("{}")
    assert find_run(str(tmp_path)) == tmp_path / "10"


def test_a_reader_that_stops_early_is_no_error(tmp_path):
    command = f"{sys.executable} -m zoo train segmentation/demo --help | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == ""


def test_control_c_exits_with_130(monkeypatch, capsys):
    import zoo.cli

    def stopped(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo.cli, "_run", stopped)
    assert zoo.cli.main([]) == 130
    assert capsys.readouterr().err == "zoo: stopped.\n"
