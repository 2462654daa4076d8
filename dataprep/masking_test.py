"""Masks: what the assistant says and the end of its turn are trained, nothing else, whatever the template."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from finecut.dataprep import tokenization
from finecut.dataprep.conversations import Conversation
from finecut.dataprep.masking import Masker, MaskError
from finecut.dataprep.messages import Message, ToolCall
from finecut.dataprep.records import BadRecord
from finecut.dataprep.testing import MARKED_TEMPLATE, SMOLLM2_TEMPLATE, write_tiny_tokenizer
from finecut.dataprep.testing_masks import document_of, documents_of, trained_texts

# Gemma's shape: the assistant is called "model", a system message is refused, content is trimmed.
GEMMA_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
# Qwen3's shape: an empty <think> block before the last answer only.
THINKING_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen2.5's shape: tools in the system message, calls as JSON, what tools answer as the user's.
TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{% if message.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>' + message.content + '</tool_response><|im_end|>\n' }}{% else %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{% for call in message.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {"marked": MARKED_TEMPLATE, "smollm2": SMOLLM2_TEMPLATE, "gemma": GEMMA_TEMPLATE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def tokenizer_with(folder: Path, template: str) -> PreTrainedTokenizerBase:
    tokenizer = tokenization.load(folder)
    tokenizer.chat_template = template
    return tokenizer


def conversation(*contents: str, system: str | None = None) -> Conversation:
    turns = [Message("assistant" if number % 2 else "user", content) for number, content in enumerate(contents)]
    first = [Message("system", system)] if system else []
    return Conversation("chats", "chats.jsonl:7", tuple(first + turns))


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_each_answer_and_its_end_are_trained(folder: Path, template: str) -> None:
    tokenizer = tokenizer_with(folder, template)
    document = document_of(Masker(tokenizer), conversation("How are you?", "Fine, thanks.", "And now?", "Très bien 🙂"))
    assert trained_texts(tokenizer, document) == ["Fine, thanks.<|im_end|>", "Très bien 🙂<|im_end|>"]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_only_the_last_answer_is_trained_when_asked(folder: Path, template: str) -> None:
    tokenizer = tokenizer_with(folder, template)
    masker = Masker(tokenizer, last_turn_only=True)
    document = document_of(masker, conversation("How are you?", "Fine.", "And now?", "Fine."))
    assert trained_texts(tokenizer, document) == ["Fine.<|im_end|>"]
    assert document.loss_mask_T[-4:].any()


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_ids_are_those_that_the_template_gives(folder: Path, template: str) -> None:
    tokenizer = tokenizer_with(folder, template)
    what = conversation("How are you?", "Fine.", "Really?", "Yes.")
    messages = [{"role": m.role, "content": m.content} for m in what.messages]
    expected = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert document_of(Masker(tokenizer), what).input_ids_T.tolist() == expected


def test_the_prompt_before_an_answer_is_what_the_model_will_be_asked(folder: Path) -> None:
    tokenizer = tokenizer_with(folder, SMOLLM2_TEMPLATE)
    document = document_of(Masker(tokenizer), conversation("How are you?", "Fine."))
    asked = [{"role": "user", "content": "How are you?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
    first = int(document.loss_mask_T.argmax())
    assert document.input_ids_T[:first].tolist() == prompt
    assert "named SmolLM" in tokenizer.decode(prompt)  # the template's own system message


# Hypothesis tries strings of the source code too; special tokens are refused, which is another test's.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda text: "<|" not in text)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    contents=st.lists(TEXT, min_size=2, max_size=6),
    system=st.none() | st.just("Be brief."),
    template=st.sampled_from([MARKED_TEMPLATE, SMOLLM2_TEMPLATE]),
)
def test_any_text_is_masked_exactly(folder: Path, contents: list[str], system: str | None, template: str) -> None:
    tokenizer = tokenizer_with(folder, template)
    contents = [content if content.strip() else "x" for content in contents[: len(contents) // 2 * 2]]
    document = document_of(Masker(tokenizer), conversation(*contents, system=system))
    assert trained_texts(tokenizer, document) == [f"{answer}<|im_end|>" for answer in contents[1::2]]
    assert not document.loss_mask_T[0]


def test_the_end_of_turn_is_trained_where_it_is_also_the_padding(folder: Path) -> None:
    tokenizer = tokenizer_with(folder, SMOLLM2_TEMPLATE)
    tokenizer.pad_token = tokenizer.eos_token = "<|im_end|>"
    document = document_of(Masker(tokenizer), conversation("Hi", "Hello"))
    assert int(document.input_ids_T[document.loss_mask_T][-1]) == tokenizer.eos_token_id


def test_what_the_template_says_for_the_assistant_is_trained_too(folder: Path) -> None:
    tokenizer = tokenizer_with(folder, THINKING_TEMPLATE)
    document = document_of(Masker(tokenizer), conversation("Hi", "Hello"))
    assert trained_texts(tokenizer, document) == ["<think>\n\n</think>\n\nHello<|im_end|>"]


def test_turns_that_the_template_rewrites_get_documents_of_their_own(folder: Path) -> None:
    tokenizer = tokenizer_with(folder, THINKING_TEMPLATE)
    first, whole = documents_of(Masker(tokenizer), conversation("Hi", "Hello", "More", "No"))
    assert trained_texts(tokenizer, first) == ["<think>\n\n</think>\n\nHello<|im_end|>"]
    assert trained_texts(tokenizer, whole) == ["<think>\n\n</think>\n\nNo<|im_end|>"]
    assert (first.earlier_turn, whole.earlier_turn) == (True, False)


def test_markers_in_a_template_that_rewrites_earlier_turns_do_not_train_history(folder: Path) -> None:
    # Marked like this, the first answer would be trained without the block that the model has to write.
    marked = THINKING_TEMPLATE.replace(
        "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ message['content'] + '<|im_end|>\n' }}",
        "{% if message['role'] == 'assistant' %}{% generation %}{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}"
        "{% endif %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}",
    )
    assert "{% generation %}" in marked
    tokenizer = tokenizer_with(folder, marked)
    documents = documents_of(Masker(tokenizer), conversation("Hi", "Hello", "More", "No"))
    expected = documents_of(
        Masker(tokenizer_with(folder, THINKING_TEMPLATE)), conversation("Hi", "Hello", "More", "No")
    )
    assert [document.input_ids_T.tolist() for document in documents] == [d.input_ids_T.tolist() for d in expected]
    assert [document.loss_mask_T.tolist() for document in documents] == [d.loss_mask_T.tolist() for d in expected]


def test_a_rewritten_turn_of_weight_zero_gets_no_document(folder: Path) -> None:
    tokenizer = tokenizer_with(folder, THINKING_TEMPLATE)
    first, answer, *rest = conversation("Hi", "Hello", "And now?", "Bye.").messages
    mixed = Conversation("chats", "chats.jsonl:7", (first, replace(answer, trained=False), *rest))
    assert trained_texts(tokenizer, document_of(Masker(tokenizer), mixed)) == ["<think>\n\n</think>\n\nBye.<|im_end|>"]


def test_a_special_token_in_a_message_is_a_bad_record(folder: Path) -> None:
    masker = Masker(tokenizer_with(folder, MARKED_TEMPLATE))
    good, bad = masker.documents([conversation("Hi", "Hello"), conversation("Hi<|im_end|>", "Hello")])
    assert not isinstance(good, BadRecord)
    assert str(bad) == "chats.jsonl:7: messages[0].content holds the special token '<|im_end|>'; remove it"


def test_a_refusal_of_the_template_is_a_bad_record(folder: Path) -> None:
    masker = Masker(tokenizer_with(folder, GEMMA_TEMPLATE))
    bad, good = masker.documents([conversation("Hi", "Hello", system="Be brief."), conversation("Hi", "Hello")])
    assert isinstance(bad, BadRecord) and "System role not supported" in bad.reason
    assert not isinstance(good, BadRecord)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param(
            MARKED_TEMPLATE.replace("+ '<|im_end|>' }}{% endgeneration %}", "}}{% endgeneration %}{{ '<|im_end|>' }}"),
            "no special token ends it inside the trained part",
            id="end of turn outside the markers",
        ),
        pytest.param(
            "{% generation %}" + SMOLLM2_TEMPLATE + "{% endgeneration %}", "gives .* to the assistant", id="all ones"
        ),
        pytest.param(
            MARKED_TEMPLATE.replace("== 'assistant'", "== 'model'"), "marks 0 generated spans", id="all zeros"
        ),
        pytest.param(
            MARKED_TEMPLATE.replace("== 'assistant'", "== 'user'"), "gives 'ping' to the assistant", id="wrong role"
        ),
        pytest.param(
            SMOLLM2_TEMPLATE.replace("'<|im_end|>' + '\n'", "'\n'"),
            "no special token ends it",
            id="no end of turn at all",
        ),
        pytest.param(
            SMOLLM2_TEMPLATE.replace("<|im_start|>assistant", "<|im_start|>bot"),
            "writes another text before the answer",
            id="another generation prompt",
        ),
        pytest.param(
            SMOLLM2_TEMPLATE.replace("message['content']", "message['content'] | upper"),
            "gives 'PONG' to the assistant",
            id="changed content",
        ),
        pytest.param(
            SMOLLM2_TEMPLATE.replace("assistant\n", "assistant ").replace(
                "message['role'] + '\n'", "message['role'] + ' '"
            ),
            "a token reaches across its border",
            id="prompt that ends with a blank",
        ),
        pytest.param("{{ messages[0].nothing.at_all }}", "cannot be used", id="broken template"),
    ],
)
def test_a_template_that_cannot_be_masked_is_refused_before_any_data(folder: Path, template: str, reason: str) -> None:
    with pytest.raises(MaskError, match=reason):
        Masker(tokenizer_with(folder, template))


def test_a_token_across_the_border_is_a_bad_record(folder: Path) -> None:
    # The prompt ends with "W", and "What" is one token: an answer "hat" would begin inside it.
    template = SMOLLM2_TEMPLATE.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\nW' }}").replace(
        "+ message['content']", "+ ('W' if message['role'] == 'assistant' else '') + message['content']"
    )
    bad, good = Masker(tokenizer_with(folder, template)).documents([conversation("?", "hat"), conversation("?", "ow")])
    assert isinstance(bad, BadRecord) and bad.reason.startswith("assistant turn 1: a token reaches across its border")
    assert not isinstance(good, BadRecord)


def tool_conversation(**fields: Any) -> Conversation:
    call = ToolCall("weather", {"city": "Zürich", "days": 2})
    turns = (
        Message("user", "Is it warm?"),
        Message("assistant", "", (call,)),
        Message("tool", "21 degrees"),
        Message("assistant", "Yes."),
    )
    return Conversation("chats", "chats.jsonl:7", turns, **fields)


def test_tool_calls_are_trained_and_what_tools_answer_is_not(folder: Path) -> None:
    tokenizer = tokenizer_with(folder, TOOL_TEMPLATE)
    document = document_of(Masker(tokenizer), tool_conversation(tools=({"name": "weather"},)))
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Zürich", "days": 2}}</tool_call>'
    assert trained_texts(tokenizer, document) == [f"{call}<|im_end|>", "Yes.<|im_end|>"]
    untrained = tokenizer.decode(document.input_ids_T[~document.loss_mask_T])
    assert "21 degrees" in untrained and '{"name": "weather"}' in untrained


@pytest.mark.parametrize("template", [SMOLLM2_TEMPLATE, MARKED_TEMPLATE], ids=["smollm2", "marked"])
def test_tools_that_the_template_leaves_out_are_refused(folder: Path, template: str) -> None:
    masker = Masker(tokenizer_with(folder, template))
    offered = Conversation("chats", "chats.jsonl:8", conversation("Hi", "Hello").messages, ({"name": "weather"},))
    for what, reason in ((tool_conversation(), "leaves out tool calls"), (offered, "tools: .* leaves them out")):
        (bad,) = masker.documents([what])
        assert isinstance(bad, BadRecord) and re.search(reason, bad.reason)


def test_a_tool_answer_that_the_template_leaves_out_is_refused(folder: Path) -> None:
    masker = Masker(tokenizer_with(folder, TOOL_TEMPLATE.replace("+ message.content + '</tool", "+ '</tool")))
    (bad,) = masker.documents([tool_conversation()])
    assert isinstance(bad, BadRecord) and "messages[2]: the chat template leaves out what the tool" in bad.reason


def test_arguments_that_the_template_leaves_out_stop_the_stage(folder: Path) -> None:
    masker = Masker(tokenizer_with(folder, TOOL_TEMPLATE.replace("call.function |", "call.function.name |")))
    with pytest.raises(MaskError, match=r"assistant turn 1: the trained tokens say .* and calls weather"):
        masker.documents([tool_conversation()])


def test_a_special_token_in_a_tool_call_is_a_bad_record(folder: Path) -> None:
    call = ToolCall("weather", {"city": "<|im_end|>"})
    turns = (Message("user", "Hi"), Message("assistant", "", (call,)))
    (bad,) = Masker(tokenizer_with(folder, TOOL_TEMPLATE)).documents([Conversation("chats", "chats.jsonl:7", turns)])
    assert isinstance(bad, BadRecord) and "messages[1].tool_calls holds the special token" in bad.reason


def test_a_turn_of_weight_zero_is_not_trained(folder: Path) -> None:
    tokenizer = tokenizer_with(folder, SMOLLM2_TEMPLATE)
    first, answer, *rest = conversation("Hi", "Hello", "And now?", "Bye.").messages
    mixed = Conversation("chats", "chats.jsonl:7", (first, replace(answer, trained=False), *rest))
    assert trained_texts(tokenizer, document_of(Masker(tokenizer), mixed)) == ["Bye.<|im_end|>"]
    last = Conversation(
        "chats", "chats.jsonl:7", (*mixed.messages[:1], answer, rest[0], replace(rest[1], trained=False))
    )
    assert trained_texts(tokenizer, document_of(Masker(tokenizer), last)) == ["Hello<|im_end|>"]
    (bad,) = Masker(tokenizer, last_turn_only=True).documents([last])
    assert isinstance(bad, BadRecord) and "has weight 0" in bad.reason
