import pytest

from tests.training.discs import recipe_of, write_discs
from zoo.errors import UserError
from zoo.training.data import open_data


def test_splits_come_back_from_their_names(tmp_path):
    recipe = recipe_of(tmp_path, write_discs(tmp_path / "discs", 12))
    data = open_data(recipe)
    assert data.images == {"train": 10, "val": 1, "test": 1}
    assert open_data(recipe, names=data.names()).pairs == data.pairs
    write_discs(tmp_path / "discs", 30, first=12)
    assert open_data(recipe, names=data.names()).pairs == data.pairs
    assert open_data(recipe).pairs != data.pairs


def test_an_unknown_or_empty_split_is_answered(tmp_path):
    data = open_data(recipe_of(tmp_path, write_discs(tmp_path / "discs", 12)))
    with pytest.raises(UserError, match=r"no split 'trian' - did you mean 'train'.*train, val, test"):
        data.original("trian")
    alone = open_data(recipe_of(tmp_path, write_discs(tmp_path / "one", 1)))
    with pytest.raises(UserError, match=r"split 'val' .* is empty"):
        alone.original("val")


def test_the_models_channels_and_intensity_stand_in_for_the_cards(tmp_path):
    recipe = recipe_of(tmp_path, write_discs(tmp_path / "discs", 12), "--data.card.intensity", "{bits: 12}")
    assert open_data(recipe).card.intensity == {"bits": 12}
    card = open_data(recipe, channels=1, intensity={}).card
    assert (card.channels, card.intensity) == (1, {})
