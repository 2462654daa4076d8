"""What is trained with the chat templates of the families that people fine-tune, and what is refused."""

import pytest
from transformers import PreTrainedTokenizerBase

from finecut.dataprep.conversations import Conversation, Message
from finecut.dataprep.masking import Masker, MaskError
from finecut.dataprep.testing import write_tiny_tokenizer
from finecut.dataprep.testing_masks import document_of, documents_of, trained_texts
from finecut.dataprep.testing_templates import FAMILIES, tokenizer_of

# What each family's template has the assistant say around "Paris." in a last turn.
ANSWERS = {
    "llama3.1": "Paris.<|eot_id|>",
    "qwen2.5": "Paris.<|im_end|>",
    "qwen3": "<think>\n\n</think>\n\nParis.<|im_end|>",
    "gemma3": "Paris.<end_of_turn>",
    "mistral": " Paris.</s>",
    "smollm2": "Paris.<|im_end|>",
    "gpt-oss": "<|channel|>final<|message|>Paris.<|return|>",
}
REWRITES_HISTORY = {"qwen3", "gpt-oss"}
KEEPS_HISTORY = [name for name in FAMILIES if name not in REWRITES_HISTORY]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    folder = write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return {name: tokenizer_of(family, folder) for name, family in FAMILIES.items()}


def conversation(*contents: str, system: str | None = None) -> Conversation:
    turns = [Message("assistant" if number % 2 else "user", content) for number, content in enumerate(contents)]
    first = [Message("system", system)] if system else []
    return Conversation("chats", "chats.jsonl:7", tuple(first + turns))


SINGLE = conversation("What is the capital of France?", "Paris.")
MULTI = conversation("How are you?", "Fine.", "What is the capital of France?", "Paris.")


def prompt_ids(tokenizer: PreTrainedTokenizerBase, what: Conversation) -> list[int]:
    """What a model is asked with when all but the last answer is given."""
    messages = [{"role": message.role, "content": message.content} for message in what.messages[:-1]]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answer_and_the_end_of_turn_are_trained(name: str, tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    tokenizer = tokenizers[name]
    document = document_of(Masker(tokenizer), SINGLE)
    assert trained_texts(tokenizer, document) == [ANSWERS[name]]
    trained_ids = document.input_ids_T[document.loss_mask_T].tolist()
    assert trained_ids[-1] == tokenizer.convert_tokens_to_ids(FAMILIES[name].end_of_turn)


@pytest.mark.parametrize("last_turn_only", [False, True])
@pytest.mark.parametrize("name", KEEPS_HISTORY)
def test_all_turns_or_the_last_are_trained(
    name: str, last_turn_only: bool, tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    tokenizer = tokenizers[name]
    earlier = [ANSWERS[name].replace("Paris", "Fine")]
    expected = [ANSWERS[name]] if last_turn_only else [*earlier, ANSWERS[name]]
    assert trained_texts(tokenizer, document_of(Masker(tokenizer, last_turn_only), MULTI)) == expected


@pytest.mark.parametrize("what", [SINGLE, MULTI], ids=["single", "multi"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_turn_is_trained_behind_the_prompt_that_inference_uses(
    name: str, what: Conversation, tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    tokenizer = tokenizers[name]
    document = document_of(Masker(tokenizer, last_turn_only=True), what)
    assert trained_texts(tokenizer, document) == [ANSWERS[name]]
    first = int(document.loss_mask_T.argmax())
    assert document.input_ids_T[:first].tolist() == prompt_ids(tokenizer, what)


def generated_texts(tokenizer: PreTrainedTokenizerBase, what: Conversation) -> list[str]:
    """What the model says at each turn: the rendering with that answer last, without the prompt that it is asked with.

    White space that the template writes behind the end of a turn is never generated.
    """
    found = []
    for index, message in enumerate(what.messages):
        if message.role == "assistant":
            messages = [{"role": m.role, "content": m.content} for m in what.messages[: index + 1]]
            asked = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
            found.append(tokenizer.apply_chat_template(messages, tokenize=False).removeprefix(asked).rstrip("\n"))
    return found


THOUGHTS = conversation(
    *(text for n in range(3) for text in (f"Question {n}?", f"<think>\nThought {n}.\n</think>\n\nAnswer {n}."))
)


@pytest.mark.parametrize("what", [MULTI, THOUGHTS], ids=["plain", "thinking"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_turn_is_trained_once_as_the_model_generates_it(
    name: str, what: Conversation, tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    tokenizer = tokenizers[name]
    documents = documents_of(Masker(tokenizer), what)
    found = [text for document in documents for text in trained_texts(tokenizer, document)]
    assert found == generated_texts(tokenizer, what)
    assert len(documents) == (len(found) if name in REWRITES_HISTORY else 1)
    assert [document.earlier_turn for document in documents] == [True] * (len(documents) - 1) + [False]


@pytest.mark.parametrize("name", sorted(REWRITES_HISTORY))
def test_a_rewritten_turn_stands_behind_the_prompt_that_inference_uses(
    name: str, tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    tokenizer = tokenizers[name]
    for number, document in enumerate(documents_of(Masker(tokenizer), THOUGHTS), start=1):
        until_here = Conversation("chats", "chats.jsonl:7", THOUGHTS.messages[: 2 * number])
        first = int(document.loss_mask_T.argmax())
        assert document.input_ids_T[:first].tolist() == prompt_ids(tokenizer, until_here)


def test_qwen3_keeps_turns_together_while_it_keeps_their_thoughts(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    # Thinking stays until the user speaks again, as in a loop of tool calls.
    answers = [Message("assistant", f"<think>\nThought {n}.\n</think>\n\nAnswer {n}.") for n in range(3)]
    turns = (Message("user", "One?"), answers[0], answers[1], Message("user", "Two?"), answers[2])
    documents = documents_of(Masker(tokenizers["qwen3"]), Conversation("chats", "chats.jsonl:7", turns))
    trained = [trained_texts(tokenizers["qwen3"], document) for document in documents]
    assert trained == [
        [f"{answer.content}<|im_end|>" for answer in answers[:2]],
        [f"{answers[2].content}<|im_end|>"],
    ]


def test_qwen3_trains_the_last_thought_and_drops_earlier_ones(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    tokenizer = tokenizers["qwen3"]
    thoughtful = "<think>\nA city.\n</think>\n\nParis."
    what = conversation(
        "How are you?", thoughtful.replace("A city", "Polite"), "And the capital of France?", thoughtful
    )
    document = document_of(Masker(tokenizer, last_turn_only=True), what)
    assert trained_texts(tokenizer, document) == [f"{thoughtful}<|im_end|>"]
    assert "Polite" not in tokenizer.decode(document.input_ids_T)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mistral"])
def test_a_system_message_is_there_and_not_trained(name: str, tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    tokenizer = tokenizers[name]
    document = document_of(Masker(tokenizer), conversation("Capital of France?", "Paris.", system="Be brief."))
    assert "Be brief." in tokenizer.decode(document.input_ids_T)
    assert trained_texts(tokenizer, document) == [ANSWERS[name]]


def test_mistral_with_a_system_message_is_refused(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    # Its template forgets the system message as soon as an answer follows: training would not see what serving shows.
    masker = Masker(tokenizers["mistral"], last_turn_only=True)
    with pytest.raises(
        MaskError, match=r"another text before the answer .* asked with; set tokenization.chat_template"
    ):
        masker.documents([conversation("Capital of France?", "Paris.", system="Be brief.")])


@pytest.mark.parametrize("name", ["llama3.1", "gemma3"])
def test_trimmed_answers_are_trained_as_the_template_writes_them(
    name: str, tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    document = document_of(Masker(tokenizers[name]), conversation("Capital?", "  Paris.\n"))
    assert trained_texts(tokenizers[name], document) == [ANSWERS[name]]
