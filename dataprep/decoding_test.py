"""Decoding from a table gives what the tokenizer gives, or is not done."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import decoders
from transformers import PreTrainedTokenizerBase

from finecut.dataprep import tokenization
from finecut.dataprep.decoding import Decoder
from finecut.dataprep.testing import write_tiny_tokenizer

TEXTS = ["Très bien 🙂", "", "a<|im_end|>\n b", "\x00\u00ad\u200d字", "x" * 100]


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    return tokenization.load(write_tiny_tokenizer(tmp_path), added_tokens=["<字>"])


def ids_of(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[np.ndarray]:
    return [np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32) for text in texts]


def test_texts_come_back(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [*TEXTS, "an added <字> token"]
    assert Decoder(tokenizer).decode(ids_of(tokenizer, texts)) == texts
    assert Decoder(tokenizer).decode([]) == []


def test_every_token_is_as_the_tokenizer_says(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = [np.array([number], np.int32) for number in range(len(tokenizer))]
    assert Decoder(tokenizer).decode(ids) == [tokenizer.decode(one) for one in ids]


def test_a_torn_character_is_shown_as_such(tokenizer: PreTrainedTokenizerBase) -> None:
    (smile_T,) = ids_of(tokenizer, ["🙂"])
    assert len(smile_T) > 1
    assert Decoder(tokenizer).decode([smile_T[:1], smile_T]) == ["\ufffd", "🙂"]


def test_another_kind_of_decoder_is_asked(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip("a", 1, 0)])
    decoder = Decoder(tokenizer)
    assert decoder._bytes is None
    assert decoder.decode(ids_of(tokenizer, ["bad"])) == [tokenizer.decode(ids_of(tokenizer, ["bad"])[0])]


def test_a_wrong_table_is_found(tokenizer: PreTrainedTokenizerBase) -> None:
    decoder = Decoder(tokenizer)
    assert decoder._bytes is not None
    decoder._bytes = dict.fromkeys(decoder._bytes, b"?")
    with pytest.raises(RuntimeError, match="does not decode to"):
        decoder.decode(ids_of(tokenizer, ["abc"]))
