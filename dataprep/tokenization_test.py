"""The tokenizer: loads from a folder, and its fingerprint changes exactly when ids could."""

import json
from pathlib import Path

import pytest

from finecut.dataprep import tokenization
from finecut.dataprep.testing import write_tiny_tokenizer
from finecut.proto.config import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_the_tiny_tokenizer_round_trips_text(folder: Path) -> None:
    tokenizer = tokenization.load(folder)
    assert len(tokenizer) == 512
    text = "What is the capital? Zürich \N{SNOWMAN}\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert [*ids, tokenizer.convert_tokens_to_ids("<|im_end|>")] == [0, 1, 2, 4]


def test_fingerprint_survives_saving_and_use(folder: Path, tmp_path: Path) -> None:
    tokenizer = tokenization.load(folder)
    before = tokenization.fingerprint(tokenizer)
    tokenizer(["a", "some more words"], padding=True, truncation=True, max_length=2)
    tokenizer.save_pretrained(tmp_path)
    assert tokenization.fingerprint(tokenizer) == before
    assert tokenization.fingerprint(tokenization.load(tmp_path)) == before


def test_fingerprint_sees_template_vocabulary_and_special_tokens(folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    other = tokenization.load(folder)
    other.eos_token = "<|im_end|>"
    smaller = tokenization.load(write_tiny_tokenizer(tmp_path / "smaller", vocabulary_size=400))
    tokenizers = [tokenization.load(folder), tokenization.load(folder, template), other, smaller]
    assert len({tokenization.fingerprint(tokenizer) for tokenizer in tokenizers}) == 4


def test_added_tokens_follow_the_others_and_are_never_split(folder: Path, tmp_path: Path) -> None:
    tokenizer = tokenization.load(folder, added_tokens=("<tool>", "b c"))
    assert len(tokenizer) == 514 and tokenizer.convert_tokens_to_ids(["<tool>", "b c"]) == [512, 513]
    ids = tokenizer("a<tool> b c", add_special_tokens=False)["input_ids"]
    assert 512 in ids and ids[-1] == 513
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<tool> b c"
    tokenizer.save_pretrained(tmp_path)
    fingerprints = [tokenization.fingerprint(t) for t in (tokenizer, tokenization.load(tmp_path))]
    assert fingerprints[0] == fingerprints[1] != tokenization.fingerprint(tokenization.load(folder))
    swapped = tokenization.load(folder, added_tokens=("b c", "<tool>"))
    assert tokenization.fingerprint(swapped) != fingerprints[0]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [(("<new>", "<|im_end|>"), r"added_tokens: <\|im_end\|>: in the vocabulary"), (("<a>", "<a>"), "named twice")],
)
def test_tokens_that_cannot_be_added_are_named(folder: Path, tokens: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tokenization.load(folder, added_tokens=tokens)


def test_an_empty_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenization.tokenizer: .* holds no tokenizer") as caught:
        tokenization.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_broken_tokenizer_file_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"tokenization.tokenizer"):
        tokenization.load(tmp_path)


def test_a_tokenizer_without_chat_template_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"has no single chat template; set tokenization.chat_template_file"):
        tokenization.load(tmp_path)


def test_a_missing_template_file_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"chat_template_file: cannot read .*absent.jinja"):
        tokenization.load(folder, tmp_path / "absent.jinja")


def test_padding_falls_back_to_end_of_sequence(folder: Path, tmp_path: Path) -> None:
    tokenizer = tokenization.load(folder)
    assert tokenization.padding_id(tokenizer) == 0
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokenization.padding_id(tokenization.load(tmp_path)) == 2
