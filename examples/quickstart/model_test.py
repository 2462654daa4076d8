"""The converted model: its tokenizer is SmolLM2's, its template can be masked, and it talks."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from finecut.dataprep import tokenization
from finecut.dataprep.conversations import Conversation, Message
from finecut.dataprep.masking import Masker
from finecut.dataprep.records import BadRecord

FOLDER = Path(__file__).parent / "model"

# What SmolLM2-Instruct's published tokenizer makes of its default system message and the start of a user's.
PREFIX = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tokenization.load(FOLDER)


def test_the_tokenizer_is_the_published_one(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], return_dict=True)["input_ids"]
    assert ids[: len(PREFIX)] == PREFIX
    assert tokenizer.tokenize("In 2024") == ["In", "Ġ", "2", "0", "2", "4"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    text = "Zürich, 東京 and\tcode: `x = [1, 2]`\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_its_template_is_masked_with_the_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = (Message("user", "What is AI?"), Message("assistant", "A branch of science."))
    (result,) = Masker(tokenizer).documents([Conversation("chats", "chats.jsonl:1", messages)])
    assert not isinstance(result, BadRecord)
    (document,) = result
    assert tokenizer.decode(document.input_ids_T[document.loss_mask_T]) == "A branch of science.<|im_end|>"


def test_an_answer_that_begins_with_a_line_break_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    # Two line breaks are one token of this vocabulary, and the prompt ends with one.
    messages = (Message("user", "What is AI?"), Message("assistant", "\n\nA branch of science."))
    (bad,) = Masker(tokenizer).documents([Conversation("chats", "chats.jsonl:1", messages)])
    assert isinstance(bad, BadRecord) and "remove the white space at the start of the answer" in bad.reason


def test_the_config_is_a_plain_llama(tokenizer: PreTrainedTokenizerBase) -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["model_type"], config["dtype"], config["rms_norm_eps"]) == ("llama", "bfloat16", 1e-5)
    assert config["vocab_size"] == len(tokenizer) == 49_152


def test_it_answers_a_question(tokenizer: PreTrainedTokenizerBase) -> None:
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
