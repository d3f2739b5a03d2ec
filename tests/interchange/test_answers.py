"""Any decoder answers on any encoder, for any size and number of channels: shape, type, no NaN."""

from itertools import combinations, product

import pytest

from tests.interchange.parts import CHANNELS, KINDS, SIZES, cover, create, decoders, fault, faults, pairs

PAIRS = cover(decoders(), list(KINDS), SIZES, CHANNELS)


def test_the_cases_hold_every_pair_of_decoder_encoder_size_and_channels():
    axes = (decoders(), KINDS, SIZES, CHANNELS)
    held = set().union(*(pairs(row) for row in PAIRS))
    for i, j in combinations(range(len(axes)), 2):
        assert all((i, a, j, b) in held for a, b in product(axes[i], axes[j]))
    assert len(PAIRS) < len(decoders()) * len(KINDS) * 2  # of 18 times as many in the product


@pytest.mark.parametrize(("decoder", "kind", "size", "channels"), PAIRS, ids=str)
def test_a_decoder_answers_on_an_encoder_at_the_images_size(decoder, kind, size, channels):
    assert not fault(create(decoder, kind, channels=channels).eval(), *size)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decoder", decoders())
def test_a_decoder_answers_on_an_encoder_at_every_size_and_number_of_channels(decoder, kind):
    assert not list(faults(decoder, kind))
