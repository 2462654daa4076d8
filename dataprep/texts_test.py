"""Plain text: every token but the first is trained, and the document ends."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from finecut.dataprep import tokenization
from finecut.dataprep.documents import Document
from finecut.dataprep.records import Record, RecordError
from finecut.dataprep.testing import write_tiny_tokenizer
from finecut.dataprep.texts import Text, TextTokenizer, parse
from finecut.proto.config import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def text(content: str) -> Text:
    return Text("books", "books.jsonl:7", content)


def test_every_token_but_the_first_is_trained(folder: Path) -> None:
    tokenizer = tokenization.load(folder)
    short, long = TextTokenizer(tokenizer).documents([text("x"), text("Once upon a time, Zürich.\n")])
    assert isinstance(short, Document) and isinstance(long, Document)
    assert short.input_ids_T.tolist() == [*tokenizer.encode("x"), tokenizer.eos_token_id]
    assert tokenizer.decode(long.input_ids_T) == "Once upon a time, Zürich.\n<|eos|>"
    for document in (short, long):
        assert not document.loss_mask_T[0] and document.loss_mask_T[1:].all()


def test_what_the_tokenizer_adds_is_kept_once(folder: Path) -> None:
    tokenizer = tokenization.load(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|eos|>", special_tokens=[("<|bos|>", 1), ("<|eos|>", 2)]
    )
    (document,) = TextTokenizer(tokenizer).documents([text("x")])
    assert isinstance(document, Document)
    assert tokenizer.decode(document.input_ids_T) == "<|bos|>x<|eos|>"


def test_a_special_token_in_the_text_is_a_bad_record(folder: Path) -> None:
    bad, good = TextTokenizer(tokenization.load(folder)).documents([text("a<|eos|>b"), text("a")])
    assert str(bad) == "books.jsonl:7: the text holds the special token '<|eos|>'; remove it"
    assert isinstance(good, Document)


def test_a_tokenizer_without_an_end_is_refused(folder: Path) -> None:
    tokenizer = tokenization.load(folder)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        TextTokenizer(tokenizer)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("x", "a text where an object with the field 'text'"),
        ({"body": "x"}, "no field 'text'; the record has 'body'"),
        ({"text": 3}, "text: a number where text is expected"),
        ({"text": None}, "text: a null where text is expected"),
        ({"text": " \n"}, "text: the text is empty"),
        ({"text": "x" * 10_000_000}, "text: 10,000,000 characters; a text may have 4,194,304"),
    ],
)
def test_refuses_with_a_reason(content: Any, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        parse(Record("books", "books.jsonl:7", content), "text")
