"""Encoding by words gives what the tokenizer gives for the whole text, or is not done."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
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
    assert encoder.encode(texts) == tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert encoder.encode(texts) == tokenizer(texts, add_special_tokens=False)["input_ids"]


ENCODERS: dict[str, Encoder] = {}


def test_words_are_asked_for_once(
    tokenizers: dict[str, PreTrainedTokenizerBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, asked = Encoder(tokenizers["gpt2"]), []
    ask = encoder._ask
    monkeypatch.setattr(encoder, "_ask", lambda texts: (asked.append(list(texts)), ask(texts))[1])
    encoder.encode(["the cat and the dog<|im_end|>", "the dog and a cat"])
    encoder.encode(["a cat and a dog<|im_end|>"])
    assert asked[0] == [" a", " and", " cat", " dog", " the", "<|im_end|>", "the"]
    assert ["a"] in asked


def test_few_words_are_remembered(
    tokenizers: dict[str, PreTrainedTokenizerBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "MAX_KNOWN", 10)
    encoder = Encoder(tokenizers["gpt2"])
    for number in range(30):
        texts = [f"word{chr(97 + number % 26)} of{number}", "x" * 1000]
        assert encoder.encode(texts) == tokenizers["gpt2"](texts, add_special_tokens=False)["input_ids"]
        assert len(encoder._known) <= 10
        assert "x" * 1000 not in encoder._known


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
    assert encoder.encode(["the cat</s>"]) == tokenizer(["the cat</s>"], add_special_tokens=False)["input_ids"]


def test_special_tokens_that_swallow_white_space_keep_texts_whole() -> None:
    tokenizer = train(pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert Encoder(tokenizer).in_parts
    tokenizer.add_tokens([AddedToken("<mask>", rstrip=True, special=True)], special_tokens=True)
    assert not Encoder(tokenizer).in_parts


def test_a_wrong_cut_is_found(tokenizers: dict[str, PreTrainedTokenizerBase], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tokenizers["gpt2"])
    monkeypatch.setattr(encoder, "_cut", lambda text: list(text))
    with pytest.raises(RuntimeError, match="does not encode 'the cat' word by word"):
        encoder.encode(["the cat"])
