import pytest
import torch

from sparseticket.kernels.words import pack_words, unpack_words


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_a_mask_comes_back_from_its_words(length):
    mask = torch.rand(3, 5, length, generator=torch.Generator().manual_seed(length)) < 0.4
    assert torch.equal(unpack_words(pack_words(mask), length), mask)


def test_the_first_entry_is_the_least_significant_bit_and_the_last_of_a_word_its_sign():
    mask = torch.zeros(64, dtype=torch.bool)
    mask[[0, 31, 33]] = True
    assert pack_words(mask).tolist() == [1 - 2**31, 2]


def test_words_of_another_length_are_refused():
    with pytest.raises(ValueError, match="cannot hold rows of 65 bits"):
        unpack_words(torch.zeros(2, dtype=torch.int32), 65)


def test_only_bool_masks_are_packed():
    with pytest.raises(ValueError, match="bool"):
        pack_words(torch.ones(3))
