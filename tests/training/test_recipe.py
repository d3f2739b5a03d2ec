"""Recipes: files, names of parts, the command line over them, and what is refused."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.errors import UserError
from zoo.training import keys
from zoo.training.recipe import list_recipes, load_recipe, recipe_keys, recipe_text

UNET = "segmentation/unet_folder"


def model(*overrides, name=UNET):
    return load_recipe(name, overrides).model


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_loads_says_its_command_and_comes_back_equal_from_its_resolved_yaml(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe_text(name).startswith(f"# zoo train {name} ")
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    assert load_recipe(file) == recipe
    assert recipe.name == name


def test_what_the_command_line_sets_comes_back_from_the_resolved_yaml(tmp_path):
    card = "{name: folder, values: {0: 0, 255: 1, 7: ignore}}"
    recipe = load_recipe(UNET, ["--data.card", card, "--optimizer.lr", "1e-5", "--data.rates", "[0.75, 1]"])
    assert recipe.data.card["values"] == {0: 0, 255: 1, 7: "ignore"}
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "r.yaml") == recipe


def test_a_folder_named_like_a_number_stays_text(tmp_path):
    for root in ("1e3", "1.5E-2", "2024", "null", "1.0"):
        recipe = load_recipe(UNET, [f"--data.card.root={root}", "--data.root", root.replace("null", "'null'")])
        (tmp_path / "r.yaml").write_text(recipe.to_yaml())
        assert load_recipe(tmp_path / "r.yaml") == recipe
    assert load_recipe(UNET, ["--data.root", "1e3"]).data.root == "1e3"


def test_a_whole_section_may_be_given_with_names_of_parts():
    assert load_recipe(UNET, ["--data", "{card: folder}"]).data.card == {"name": "folder"}
    given = load_recipe(UNET, ["--model", "{encoder: resnet18, decoder: linear}"]).model
    assert (given["encoder"], given["decoder"]) == ({"name": "resnet18"}, {"name": "linear"})


def test_numbers_are_pythons_own_so_that_checkpoints_hold_nothing_else():
    recipe = load_recipe("segmentation/pranet_polyp")
    assert {type(n) for n in (*recipe.data.size, recipe.data.batch_size, recipe.seed)} == {int}
    assert {type(n) for n in (*recipe.data.rates, recipe.optimizer.lr)} == {float}


def test_pranet_polyp_is_the_published_training():
    recipe = load_recipe("segmentation/pranet_polyp")
    assert recipe.model == {"name": "pranet", "num_classes": 1, "encoder_weights": True}
    assert (recipe.data.size, recipe.data.rates, recipe.data.batch_size) == ((352, 352), (0.75, 1.0, 1.25), 16)
    assert (recipe.data.fit, recipe.data.augment, recipe.data.soft_masks) == ("resize", "none", True)
    assert recipe.optimizer.name == "adam"
    assert recipe.optimizer.options() == {"lr": 1e-4}
    assert recipe.loss == {"structure_as_coded": 1.0, "aux": 1.0}
    assert recipe.trainer == {
        **{"max_epochs": 19, "gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
        **{"devices": 1, "precision": "32-true"},
    }
    assert (recipe.scheduler.name, recipe.scheduler.every, recipe.scheduler.gamma) == ("step", 50, 0.1)
    assert recipe.monitor is None


def test_a_protocol_is_a_part_with_options_and_none_unless_it_is_asked_for(tmp_path):
    assert load_recipe(UNET).protocol is None
    assert load_recipe(UNET, ["--protocol", "pranet"]).protocol == {"name": "pranet"}
    words = ["--protocol.u8", "false", "--protocol", "pranet"]
    assert load_recipe(UNET, words).protocol == {"name": "pranet", "u8": False}
    path = tmp_path / "mine.yaml"
    path.write_text(load_recipe(UNET, words).to_yaml())
    assert load_recipe(path, ["--protocol.u8", "true"]).protocol == {"name": "pranet", "u8": True}
    assert load_recipe(path, ["--protocol", "null"]).protocol is None


def test_an_option_of_a_part_keeps_the_part_and_its_other_options():
    assert model("--model.decoder.upsample", "bilinear")["decoder"] == {"name": "unet", "upsample": "bilinear"}


def test_an_equal_name_keeps_a_parts_options_and_another_name_drops_them(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: {encoder: resnet18, decoder: {name: unet, upsample: bilinear}}\ndata: {card: demo}\n")
    kept = {"name": "unet", "upsample": "bilinear"}
    assert model("--model.decoder", "unet", name=file)["decoder"] == kept
    assert model("--model.decoder.name=unet", name=file)["decoder"] == kept
    assert model("--model.decoder", "linear", name=file)["decoder"] == {"name": "linear"}
    assert model("--model.decoder.name", "linear", name=file)["decoder"] == {"name": "linear"}


def test_a_parts_name_counts_before_its_options_in_any_order():
    set_both = model("--model.decoder.dropout", "0.1", "--model.decoder", "linear")
    assert set_both["decoder"] == {"name": "linear", "dropout": 0.1}


def test_another_model_keeps_what_belongs_to_the_data_and_the_backbone():
    assert model("--model", "pranet") == {"name": "pranet", "num_classes": None, "encoder_weights": True}
    assert model("--model", "{encoder: a, decoder: b}")["encoder"] == {"name": "a"}


@pytest.mark.parametrize("words", [["--data.size", "[512, 256]"], ["--data.size=[512, 256]"]])
def test_a_value_follows_its_key_or_an_equals_sign(words):
    assert load_recipe(UNET, words).data.size == (512, 256)


def test_booleans_null_and_text_are_what_they_look_like():
    words = ["--data.soft_masks", "true", "--monitor", "null", "--data.size", "null", "--data.root", "2024"]
    recipe = load_recipe(UNET, [*words, "--loss.ce", "1", "--trainer.precision", "16-mixed"])
    assert (recipe.data.soft_masks, recipe.monitor, recipe.data.size) == (True, None, None)
    assert recipe.data.root == "2024"
    assert recipe.loss == {"ce": 1.0}
    assert recipe.trainer["precision"] == "16-mixed"


def test_a_named_model_can_be_given_its_native_size():
    assert model("--model.input_size", "null", name="segmentation/pranet_folder")["input_size"] is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data.siez", "3"], "no recipe key 'data.siez' - did you mean 'data.size'"),
        (["--dta.size", "3"], "no recipe key 'dta'"),
        (["--lr", "3"], "no recipe key 'lr' - did you mean 'optimizer.lr'"),
        (["--optimizer.learning_rate", "3"], "no recipe key 'optimizer.learning_rate'"),
        (["--scheduler.warmpu", "3"], "'scheduler.warmup'"),
        (["--trainer.max_epoch", "3"], "no recipe key 'trainer.max_epoch' - did you mean 'trainer.max_epochs'"),
        (["--trainer.callbacks", "x"], "The run sets it itself"),
        (["--trainer.val_check_interval", "0.5"], "The run sets it itself"),
        (["--seed", "5000000000"], "'seed' is 5000000000; it takes a whole number from 0 to 4294967295"),
        (["--model.decodr", "unet"], "'model.decoder'"),
        (["--data.size.x", "3"], "'data.size' is \\[384, 384\\] and holds no keys"),
        (["--data", "3"], "'data' holds keys of its own, not 3"),
        (["--data.batch_size", "0"], "'data.batch_size' is 0; it takes a whole number above 0"),
        (["--data.batch_size", "many"], "'data.batch_size' is \"many\""),
        (["--data.size", "[3]"], "'data.size' is \\[3\\]; it takes \\[a whole number"),
        (["--data.fit", "squeeze"], "it takes one of crop, resize"),
        (["--loss.ce", "much"], "'loss' is"),
        (["--protocol", "[pranet]"], "'protocol' is \\[\"pranet\"\\]; it takes {name: value} or null"),
        (["--data.size", "[1,"], "not YAML in line 1"),
        (["--data.fit"], "--data.fit lacks a value"),
        (["--data.fit", "--seed", "1"], "--data.fit lacks a value"),
        (["data.fit", "crop"], "'data.fit' is no recipe key; keys are set as --key value"),
        (["--model", "null"], "lacks the key 'model'"),
        (["--name", "../elsewhere"], "names a folder below runs/"),
        (["--name", "a: b"], "'a: b'; it names a folder below runs/.*without"),
        (["--name", "lr<3?"], "names a folder below runs/"),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence(words, told):
    with pytest.raises(UserError, match=told) as error:
        load_recipe(UNET, words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: pranet\ndata: {card: demo\nx: 3\n", "is not YAML in line 3"),
        ("", "holds no keys"),
        ("model: pranet\n", "lacks the key 'data.card'"),
        ("data: {card: demo}\n", "lacks the key 'model'"),
        ("model: pranet\ndata: demo\n", "'data' holds keys of its own"),
        ("model: pranet\ndata: {card: demo}\noptimiser: adam\n", "did you mean 'optimizer'"),
        ("model: {nam: pranet}\ndata: {card: demo}\n", "no recipe key 'model.nam'"),
    ],
)
def test_a_wrong_file_is_one_sentence(text, told, tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=told):
        load_recipe(file)


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'segmentation/demo'"):
        load_recipe("demo")
    with pytest.raises(UserError, match="'segmentation/unet_folder'"):
        load_recipe("segmentation/unetfolder")
    with pytest.raises(UserError, match=r"nowhere\.yaml' cannot be read"):
        load_recipe("nowhere.yaml")


def test_numbers_with_an_exponent_need_no_point(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: {name: pranet, mean: [1e-1, 2E-1, 3e+0]}\ndata: {card: demo}\n")
    assert load_recipe(file).model["mean"] == [0.1, 0.2, 3.0]
    assert load_recipe(file).name == "mine"


def test_pranet_folder_trains_on_masks_of_any_kind():
    recipe = load_recipe("segmentation/pranet_folder")
    assert (recipe.model["num_classes"], recipe.loss) == (None, None)


def test_every_key_is_documented():
    rows = recipe_keys(load_recipe(UNET))
    assert len(rows) > 30
    assert all(doc for _, _, doc in rows)
    assert {key: value for key, value, _ in rows}["data.size"] == "[384, 384]"


def test_the_trainers_keys_are_lightnings():
    from lightning import Trainer

    known = list(inspect.signature(Trainer.__init__).parameters)[1:]
    assert sorted(keys.TRAINER_KEYS + keys.TRAINER_KEYS_OF_THE_RUN) == sorted(known)


def test_the_models_keys_are_create_models():
    import zoo

    elsewhere = {"task", "intensity", "pyramid"}  # a key of its own, the data card's, the checkpoint's
    assert set(keys.MODEL_KEYS) == set(inspect.signature(zoo.create_model).parameters) - elsewhere


def test_the_catalogue_is_the_folder_of_recipes():
    folder = Path(__file__).parents[2] / "recipes"
    assert list_recipes() == sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))


def test_reading_a_recipe_imports_nothing_heavy():
    code = (
        "import sys; from zoo.training.recipe import load_recipe, recipe_keys;"
        "recipe_keys(load_recipe('segmentation/demo', ['--seed', '3']));"
        "print([m for m in ('torch', 'timm', 'lightning', 'numpy', 'torchmetrics') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
