import subprocess
import sys

import pytest
import yaml

from zoo.datasets.card import list_cards, load_card
from zoo.datasets.values import parse_values
from zoo.errors import UserError


def test_every_card_of_the_package_loads_and_says_what_it_is():
    names = list_cards()
    assert {"camvid", "cvc_clinicdb", "demo", "folder", "kvasir_seg", "oxford_pet", "polyp"} <= set(names)
    for name in names:
        card = load_card(name)
        assert card.name == name
        assert card.title
        assert card.licence
        assert card.get


def test_cards_are_listed_without_torch_numpy_or_albumentations():
    code = (
        "import sys; from zoo.datasets.card import list_cards, load_card; [load_card(n) for n in list_cards()];"
        "print([m for m in ('torch', 'numpy', 'albumentations', 'PIL') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_cards_are_listed_by_pattern():
    assert list_cards("*seg") == ["kvasir_seg"]
    assert list_cards("polyp") == ["polyp"]


def test_an_unknown_card_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'camvid'"):
        load_card("camvit")


def test_an_unknown_key_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="'ignore_indx' - did you mean 'ignore_index'"):
        load_card({"name": "folder", "ignore_indx": 0})


def test_keys_are_overridden_and_a_given_place_beats_the_layouts():
    card = load_card({"name": "folder", "images": "pics/{name}.*", "masks": "truth/{name}.*", "ignore_index": 9}, "/r")
    assert (card.images, card.masks, card.layouts) == (("pics/{name}.*",), ("truth/{name}.*",), ())
    assert (card.ignore_index, card.root) == (9, "/r")


def test_given_splits_are_laid_over_each_layouts_own_and_null_takes_one_out():
    own = load_card("folder").layouts
    seeded = load_card({"name": "folder", "splits": {"seed": 3}}).layouts
    assert [layout["splits"] for layout in seeded] == [layout["splits"] | {"seed": 3} for layout in own]
    without = load_card({"name": "folder", "splits": {"val": None, "test": None}}).layouts[2]
    assert without["splits"] == {"seed": 0}
    kvasir = load_card({"name": "kvasir_seg", "splits": {"test": 0.3, "val": None}})
    assert kvasir.splits == {"seed": 0, "test": 0.3}
    assert load_card({"name": "folder", "splits": None}) == load_card("folder")


def test_given_folders_keep_the_layouts_with_split_folders_and_lists_those_without():
    images = {
        choice: [
            layout["images"]
            for layout in load_card({"name": "folder", "splits": {"val": choice, "test": None}}).layouts
        ]
        for choice in ("val2", "val.txt", 0.3)
    }
    by_folder = [("{split}/images/{name}.*",), ("images/{split}/{name}.*",)]
    assert images == {"val2": by_folder, "val.txt": [("images/{name}.*",)], 0.3: [*by_folder, ("images/{name}.*",)]}


def test_the_given_spec_is_left_as_it_is():
    spec = {"name": "folder", "layouts": [{"images": ["a/{name}.*"], "masks": "b/{name}.*"}], "splits": {"test": None}}
    before = repr(spec)
    load_card(spec)
    assert repr(spec) == before


def test_mask_endings_stand_for_a_pattern_each_unless_masks_are_given():
    card = load_card({"name": "kvasir_seg", "mask_endings": ["", "_gt"]})
    assert card.masks == ("masks/{name}.*", "masks/{name}_gt.*")
    for layout in load_card("folder").layouts:
        endings = [mask.split("{name}")[1] for mask in layout["masks"]]
        assert endings == [f"{e}.*" for e in ("", "_mask", "-mask", "_segmentation", "_seg", "_gt", "_label")]


def test_a_card_of_ones_own_is_a_path_and_its_root_lies_beside_it(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"title": "Mine", "root": "files", "classes": ["a", "b", "c"]}))
    card = load_card(str(tmp_path / "mine.yaml"))
    assert (card.name, card.title, card.num_classes) == ("mine", "Mine", 3)
    assert card.root == str(tmp_path / "files")
    assert load_card(str(tmp_path / "mine.yaml"), "/elsewhere").root == "/elsewhere"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"images": "images/*.png"}, "without {name}"),
        ({"splits": {"val": 1.5}}, "share between 0 and 1"),
        ({"splits": {"val": 0.5, "test": 0.5}}, "leave some images for train"),
        ({"splits": {"train": 0.8}}, "train takes the rest"),
        ({"splits": {"seed": "x"}}, "integer"),
        ({"splits": "val"}, "give a mapping"),
        ({"group": "("}, "no regular expression"),
        ({"values": {0: 0, 255: -1}}, "class id"),
        ({"values": {"red": 1}}, "a number"),
        ({"values": {"9-3": 1}}, "a number"),
        ({"values": "looks"}, "give null, grey, look"),
        ({"values": {0: 0, 7: 7}, "classes": ["a", "b"]}, "class 7"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 3, "classes": ["a"]}, "make them agree"),
        ({"colors": [[1, 2]]}, "three numbers"),
        ({"images": 3}, "give a text"),
        ({"layouts": [{"images": "images/*.png"}]}, "without {name}"),
        ({"layouts": 3}, "layouts of the data card 'folder' is 3; give a list of mappings"),
        ({"layouts": [3]}, "layouts of the data card 'folder' holds 3"),
        ({"layouts": [{"splits": 3}]}, "splits of the layout of the data card 'folder' is 3; give a mapping"),
        ({"intensity": 5}, "intensity of the data card 'folder' is 5; give a mapping"),
        ({"colors": 5}, "colors of the data card 'folder' is 5; give a list"),
        ({"channels": "x"}, "channels of the data card 'folder' is 'x'; give the number"),
        ({"channels": 0}, "channels of the data card 'folder' is 0; give the number"),
        ({"ignore_index": None}, "ignore_index of the data card 'folder' is None; give an integer"),
        ({"root": 5}, "root of the data card 'folder' is 5; give a folder"),
        ({"group": 5}, "group of the data card 'folder' is 5; give a regular expression"),
        ({"prepare": 5}, "prepare of the data card 'folder' is 5; give a text"),
        ({"mask_endings": 5}, "Mask_endings of the data card 'folder' is 5; give a text"),
    ],
)
def test_a_wrong_value_is_refused_in_a_sentence(override, message):
    with pytest.raises(UserError, match=message):
        load_card({"name": "folder", **override})


@pytest.mark.parametrize(
    ("content", "message"), [("a: [", "no valid YAML"), ("", "holds no keys"), ("x: 1", "unknown key")]
)
def test_a_broken_card_file_is_refused_in_a_sentence(tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        load_card(str(tmp_path / "c.yaml"))


def test_a_card_file_that_cannot_be_read_as_text_is_refused_in_a_sentence(tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_bytes("title: Größe".encode("latin-1"))
    with pytest.raises(UserError, match=r"c\.yaml can't be read .*UTF-8"):
        load_card(str(path))

    def refused(*args, **options):
        raise PermissionError("Permission denied")

    monkeypatch.setattr(type(path), "read_text", refused)  # a mode of 000 does not stop root
    with pytest.raises(UserError, match=r"c\.yaml can't be read \(Permission denied\)"):
        load_card(str(path))


def test_keys_left_empty_in_a_card_file_have_their_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("title:\nroot:\nclasses:\nlayouts:\nintensity:\n")
    card = load_card(str(tmp_path / "c.yaml"))
    assert (card.title, card.root, card.classes, card.layouts, card.intensity) == ("", None, (), (), {})


def test_a_missing_card_file_is_refused():
    with pytest.raises(UserError, match=r"There is no data card /nowhere/c.yaml"):
        load_card("/nowhere/c.yaml")


def test_the_number_of_classes_follows_from_classes_or_values():
    assert load_card("polyp").num_classes == 1
    assert load_card("camvid").num_classes == 11
    assert load_card({"name": "folder", "values": {0: 0, 255: 1}}).num_classes == 1
    assert load_card({"name": "folder", "values": {"0-99": 0, 100: 1, "101": 2}}).num_classes == 3
    assert load_card("folder").num_classes is None


def test_values_are_numbers_ranges_or_colours():
    assert parse_values({0: 0, "1-9": 1, "255": "ignore"}).levels == ((0, 0, 0), (1, 9, 1), (255, 255, None))
    assert parse_values({"#000000": 0, "128, 0,64": 1}).colors == (((0, 0, 0), 0), ((128, 0, 64), 1))
    assert parse_values("grey").top == 1
    assert parse_values(None).kind == "ids"
