import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.datasets.planted import plant_faults, plant_sound
from zoo.cli import main


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    return plant_faults(tmp_path_factory.mktemp("photos"))


def test_problems_are_printed_with_files_and_lines_and_the_exit_code_is_1(faulty, capsys):
    assert main(["data", "check", str(faulty)]) == 1
    printed = capsys.readouterr().out
    assert "1 mask has another size than the image\n  masks/train/02.png is 32x32, its image 64x64\n" in printed
    assert "      exclude: [train/02]\n" in printed
    assert "      values: {0: 0, 1: 1, 2: 2, 255: ignore, 77: ignore}\n" in printed
    assert "class    train pixels  train images" in printed
    assert printed.endswith("9 problems; --write card.yaml writes a card with these lines.\n")


def test_the_written_card_has_no_problems_and_the_sheet_shows_samples(faulty, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", str(faulty), "--write", "card.yaml", "--sheet", "sheet.png"]) == 1
    assert (
        "card.yaml   train with it: zoo train segmentation/unet_folder --data.card card.yaml" in capsys.readouterr().out
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.yaml", "sheet.png"]
    assert np.asarray(Image.open("sheet.png").convert("RGB")).std() > 30
    assert main(["data", "check", "card.yaml", "--num_workers", "0"]) == 0
    assert capsys.readouterr().out.endswith("No problems.\n")


def test_of_many_files_the_first_are_printed_and_the_rest_counted(tmp_path, capsys):
    plant_sound(tmp_path, {"train": 10})
    for number in range(7):
        (tmp_path / f"masks/train/{number:02d}.png").unlink()
    assert main(["data", "check", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "7 images have no mask\n" in printed
    assert "images/train/04.jpg\n  ... and 2 more\n" in printed
    assert "# and 2 more, which --write writes" in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "There is no folder and no data card 'nowhere'"),
        (["poly"], "did you mean 'polyp'"),
        (["polyp"], "needs a folder; give --root FOLDER. To get the files: "),
        (["polyp", "--root", "nowhere"], "There is no folder nowhere; give the folder of the data set as --root."),
        (["photos", "--root", "photos"], "'photos' is a folder already"),
        (["photos", "--write", "card.txt"], "doesn't end in .yaml"),
        (["photos", "--write", "there.yaml"], "'there.yaml' exists and is left as it is"),
        (["photos", "--sheet", "no/such/sheet.png"], "There is no folder 'no/such'"),
        (["photos", "--num_workers", "-1"], "'-1' is no number of threads"),
        (["photos", "--wirte", "card.yaml"], "did you mean '--write'"),
        (["empty"], "No images found"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.yaml").write_text("mine")
    plant_sound(tmp_path / "photos", {"train": 3, "val": 1})
    assert main(["data", "check", *words]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert (tmp_path / "there.yaml").read_text() == "mine"


def test_a_check_without_a_sheet_imports_neither_torch_nor_matplotlib(tmp_path):
    plant_sound(tmp_path, {"train": 3})
    code = (
        "import sys; from zoo.cli import main; main(sys.argv[1:]);"
        " sys.exit(bool({'torch', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, "data", "check", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "No problems." in done.stdout
