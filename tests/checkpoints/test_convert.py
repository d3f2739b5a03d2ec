"""Key rules: renaming, dropping, concatenating, and one error that lists all that does not fit."""

import pytest
import torch

from zoo.checkpoints.convert import convert
from zoo.errors import UserError

RULES = (
    (r"fc\..*", ""),
    (r"head\.(weight|bias)", r"decoder.head.\1"),
    (r"branch([0-2])\.weight", r"decoder.merged.weight#\1"),
)
EXPECTED = {"decoder.head.weight": (2, 3), "decoder.head.bias": (2,), "decoder.merged.weight": (6, 4)}


def official() -> dict[str, torch.Tensor]:
    return {
        "branch1.weight": torch.full((2, 4), 1.0),  # pieces come in any order
        "fc.weight": torch.zeros(1000, 5),
        "head.weight": torch.rand(2, 3, dtype=torch.float64),
        "head.bias": torch.rand(2),
        "branch0.weight": torch.zeros(1, 4),
        "branch2.weight": torch.full((3, 4), 2.0),
    }


def test_keys_are_renamed_dropped_and_concatenated():
    state = official()
    ours = convert(RULES, state, EXPECTED)
    assert ours.keys() == EXPECTED.keys()
    assert ours["decoder.head.weight"] is state["head.weight"]
    assert ours["decoder.merged.weight"][:, 0].tolist() == [0, 1, 1, 2, 2, 2]


def test_the_first_rule_that_matches_the_whole_key_wins():
    rules = (("a", "x"), ("a.*", "y"))
    assert convert(rules, {"a": torch.ones(1), "ab": torch.zeros(1)}, {"x": (1,), "y": (1,)})["x"].item() == 1


def test_unknown_missing_and_misshapen_keys_are_listed_together():
    state = official() | {"stranger.weight": torch.zeros(1), "head.weight": torch.zeros(3, 3)}
    del state["head.bias"]
    with pytest.raises(UserError) as error:
        convert(RULES, state, EXPECTED, what="The weights in 'x.pth'")
    assert str(error.value) == (
        "The weights in 'x.pth' do not fit the model (1 unknown: stranger.weight; 1 missing: decoder.head.bias;"
        " 1 misshapen: decoder.head.weight (3, 3) instead of (2, 3)); give the weights of this very model."
    )


def test_a_rule_to_a_key_that_the_model_lacks_leaves_the_key_unknown():
    with pytest.raises(UserError, match=r"1 unknown: head\.bias"):
        convert(RULES, official(), {k: v for k, v in EXPECTED.items() if k != "decoder.head.bias"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"branch1.weight": None}, r"#0 \(1, 4\) \+ #2 \(3, 4\) instead of \(6, 4\)"),
        ({"branch1.weight": torch.zeros(2, 5)}, r"misshapen: decoder\.merged\.weight"),
        ({"branch1.weight": torch.zeros(())}, r"misshapen: decoder\.merged\.weight"),
        ({"branch0.weight": None, "branch1.weight": None}, r"#2 \(3, 4\) instead of \(6, 4\)"),
    ],
)
def test_a_concatenation_with_a_wrong_or_lost_piece_is_misshapen(change, told):
    state = {key: value for key, value in (official() | change).items() if value is not None}
    with pytest.raises(UserError, match=told):
        convert(RULES, state, EXPECTED)


def test_two_keys_for_one_place_are_refused():
    with pytest.raises(UserError, match="1 given twice: b as x"):
        convert((("[ab]", "x"),), {"a": torch.zeros(1), "b": torch.zeros(1)}, {"x": (1,)})


def test_long_lists_are_cut_and_counted():
    with pytest.raises(UserError, match=r"30 unknown: k0, k1, k2, k3, k4 and 25 more"):
        convert(RULES, {f"k{i}": torch.zeros(1) for i in range(30)}, {})
