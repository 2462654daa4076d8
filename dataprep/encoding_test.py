"""Encoding by words gives what the tokenizer gives for the whole text, or is not done."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finecut.dataprep import encoding, tokenization
from finecut.dataprep.encoding import Encoder
from finecut.dataprep.testing import write_tiny_tokenizer

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_OSS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTENCES = ["The cat isn't on the mat, it's in the hat.", "Zürich: 12 345 Grad?", "a  b\n\n c\td e's"] * 5


def by_pattern(pattern: str) -> PreTrainedTokenizerBase:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return train(pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))


def train(pre_tokenizer: object, normalizer: object = None) -> PreTrainedTokenizerBase:
    backend = Backend(models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    backend.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    return {
        "gpt2": tokenization.load(write_tiny_tokenizer(tmp_path_factory.mktemp("tiny"))),
        "smollm2": train(digits),
        "llama3": by_pattern(LLAMA_3),
        "qwen": train(by_pattern(LLAMA_3).backend_tokenizer.pre_tokenizer, normalizers.NFC()),
        "gpt-oss": by_pattern(GPT_OSS),
    }


PIECES = [
    "a",
    "cat",
    " ",
    "  ",
    "\n",
    "\t",
    ".",
    "'s",
    "'",
    "é",
    "e\u0301",
    "\u0301",
    "字",
    "1",
    "12",
    "<s>",
    "</s>",
    "<",
]
PIECES += ["|", "\u00a0", "\u200d", "ſ", " B", "😀", "\r", "\x00", "\ufeff"]


@pytest.mark.parametrize("name", ["gpt2", "smollm2", "llama3", "qwen", "gpt-oss"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join), min_size=1, max_size=4))
def test_words_give_the_ids_of_the_whole(
    tokenizers: dict[str, PreTrainedTokenizerBase], name: str, texts: list[str]
) -> None:
    tokenizer = tokenizers[name]
    encoder = ENCODERS.setdefault(name, Encoder(tokenizer))
    assert encoder.in_parts
    assert ids_of(encoder, texts) == tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert ids_of(encoder, texts) == tokenizer(texts, add_special_tokens=False)["input_ids"]


ENCODERS: dict[str, Encoder] = {}


def ids_of(encoder: Encoder, texts: list[str]) -> list[list[int]]:
    return [ids_T.tolist() for ids_T in encoder.encode(texts)]


@pytest.mark.parametrize("name", ["gpt2", "llama3", "whole texts"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=12), data=st.data())
def test_a_border_counts_tokens_where_the_ids_before_it_are_those_of_its_text(
    tokenizers: dict[str, PreTrainedTokenizerBase], name: str, pieces: list[str], data: st.DataObject
) -> None:
    tokenizer = tokenizers.get(name) or train(pre_tokenizers.Metaspace())
    encoder = ENCODERS.setdefault(name, Encoder(tokenizer))
    assert encoder.in_parts == (name != "whole texts")
    text = "".join(pieces)
    # In the middle of a special token, too.
    borders = data.draw(st.lists(st.integers(0, len(text)), min_size=1, max_size=3))
    encoded = encoder.encode_with_borders(["other", text], [(), borders])[1]
    whole = encoded.ids_T.tolist()
    for border, found in zip(borders, encoded.borders, strict=True):
        head = tokenizer([text[:border]], add_special_tokens=False)["input_ids"][0]
        assert found == (len(head) if whole[: len(head)] == head else None)


def test_what_the_tokenizer_puts_around_a_text_stays(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    tokenizer = train(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", None, [("<s>", 0), ("</s>", 1)]
    )
    encoder = Encoder(tokenizer, adds_tokens=True)
    assert encoder.in_parts
    texts = ["the cat", "a cat in the hat"]
    assert ids_of(encoder, texts) == tokenizer(texts)["input_ids"]
    assert ids_of(encoder, texts)[0][0] == 0 and ids_of(encoder, texts)[0][-1] == 1


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        pre_tokenizers.Metaspace(),
        pre_tokenizers.Split(Regex(r"[a-z]+ [a-z]+"), "isolated"),
        pre_tokenizers.Split(Regex(r" "), "merged_with_previous"),
    ],
)
def test_other_tokenizers_are_asked_for_whole_texts(pre_tokenizer: object) -> None:
    tokenizer = train(pre_tokenizer)
    encoder = Encoder(tokenizer)
    assert not encoder.in_parts
    assert ids_of(encoder, ["the cat</s>"]) == tokenizer(["the cat</s>"], add_special_tokens=False)["input_ids"]


def test_special_tokens_that_swallow_white_space_keep_texts_whole() -> None:
    tokenizer = train(pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert Encoder(tokenizer).in_parts
    tokenizer.add_tokens([AddedToken("<mask>", rstrip=True, special=True)], special_tokens=True)
    assert not Encoder(tokenizer).in_parts


def test_a_wrong_cut_is_found(tokenizers: dict[str, PreTrainedTokenizerBase], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tokenizers["gpt2"])
    monkeypatch.setattr(encoding, "BORDER", re.compile("(?<=a)"))
    with pytest.raises(RuntimeError, match="does not encode 'the cat' word by word"):
        encoder.encode(["the cat"])
