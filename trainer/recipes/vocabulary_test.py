"""Models beside the trained one are refused where an id means another token to them."""

import json
from pathlib import Path

import pytest

from finecut.proto.config import UserError
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.huggingface import locate_model
from finecut.trainer.recipes import vocabulary
from finecut.trainer.testing import write_tiny_llama


def check(folder: Path, trained: Path) -> None:
    source = locate_model(folder)
    configs = (DecoderConfig.from_folder(source.base), DecoderConfig.from_folder(trained))
    vocabulary.check("teacher", source, *configs, tokenizer=trained)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "trained")


def test_as_many_tokens_of_which_two_have_changed_places_are_refused(trained: Path, tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "stranger")
    written = json.loads((folder / "tokenizer.json").read_text())
    ids = written["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (folder / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"teacher: .*stranger has other tokens than .*trained under 2 ids \(.* is 'b'"):
        check(folder, trained)


def test_another_size_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vocabulary of 400 tokens and the trained model one of 500"):
        check(write_tiny_llama(tmp_path / "small", vocabulary_size=400), trained)


def test_another_template_and_end_of_text_do_not_matter(trained: Path, tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "chat", chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["eos_token"] = "<|im_end|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    check(folder, trained)


def test_a_folder_without_a_tokenizer_is_taken_by_its_size(trained: Path, tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "bare")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    check(folder, trained)
