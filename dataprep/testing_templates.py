"""Chat templates of well-known model families, cut down to what decides a mask: for tests.

Each keeps its family's special tokens, roles, default system message, trimming, and what it does to earlier turns.
Tools, images and dates are left out. `tokenizer_of` gives the tiny tokenizer the family's tokens and template.
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from finecut.dataprep import tokenization
from finecut.dataprep.testing import SMOLLM2_TEMPLATE


@dataclass(frozen=True)
class Family:
    """One family's template and the special tokens that it writes; `words` are added tokens that are not special."""

    template: str
    end_of_turn: str
    special: tuple[str, ...]
    beginning: str | None = None
    padding: str | None = None
    words: tuple[str, ...] = ()


# A system block is always there, with the model's knowledge cut-off; every content is trimmed.
LLAMA_31 = Family(
    template=(
        "{{ bos_token }}"
        "{% if messages[0]['role'] == 'system' %}"
        "{% set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}"
        "{% else %}{% set system = '' %}{% endif %}"
        "{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\n' + system }}"
        "{{ '<|eot_id|>' }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    end_of_turn="<|eot_id|>",
    special=(
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|finetune_right_pad_id|>",
    ),
    beginning="<|begin_of_text|>",
    padding="<|finetune_right_pad_id|>",
)

# ChatML with a system message of its own.
QWEN_25 = Family(
    template=(
        "{% if messages[0]['role'] == 'system' %}"
        "{{ '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
        "{% else %}{{ '<|im_start|>system\nYou are Qwen. You are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{% for message in messages %}{% if not (loop.first and message['role'] == 'system') %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    end_of_turn="<|im_end|>",
    special=("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    padding="<|endoftext|>",
)

# Thinking is taken out of every answer before the last user message, and an answer after it always has a block.
QWEN_3 = Family(
    template=(
        "{% set last = namespace(query=0) %}"
        "{% for message in messages %}{% if message['role'] == 'user' %}{% set last.query = loop.index0 %}{% endif %}"
        "{% endfor %}"
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] != 'assistant' %}{{ message['content'] }}"
        "{% else %}"
        "{% set parts = message['content'].split('</think>') %}"
        "{% set thought = parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' %}"
        "{% if loop.index0 > last.query %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
        "{{ parts[-1].lstrip('\n') }}"
        "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    end_of_turn="<|im_end|>",
    special=("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    padding="<|endoftext|>",
    words=("<think>", "</think>"),
)

# The system message goes into the first user message; the assistant is called "model"; contents are trimmed.
GEMMA_3 = Family(
    template=(
        "{{ bos_token }}{% set prefix = namespace(text='') %}"
        "{% if messages[0]['role'] == 'system' %}"
        "{% set prefix.text = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
        "{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
        "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
        "{{ (prefix.text if loop.first else '') + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    end_of_turn="<end_of_turn>",
    special=("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"),
    beginning="<bos>",
    padding="<pad>",
)

# Version 0.3: no header before an answer, which starts with a blank; the system message stands in the last message
# of the user, and only while that is the last of all.
MISTRAL = Family(
    template=(
        "{% if messages[0]['role'] == 'system' %}"
        "{% set system = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}"
        "{% else %}{% set system = '' %}{% endif %}"
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + (system if loop.last else '') + message['content'] + '[/INST]' }}"
        "{% else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"
    ),
    end_of_turn="</s>",
    special=("<s>", "</s>", "[INST]", "[/INST]"),
    beginning="<s>",
)

# Padding is the end of turn.
SMOLLM2 = Family(
    template=SMOLLM2_TEMPLATE, end_of_turn="<|im_end|>", special=("<|im_start|>", "<|im_end|>"), padding="<|im_end|>"
)

# Harmony: an answer names its channel; its end is <|return|> where it is the last message and <|end|> before that.
GPT_OSS = Family(
    template=(
        "{{ '<|start|>system<|message|>You are a language model.<|end|>' }}"
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}"
        "{{ '<|start|>assistant<|channel|>final<|message|>' + message['content'] }}"
        "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
        "{% else %}"
        "{{ '<|start|>' + ('developer' if message['role'] == 'system' else 'user') + '<|message|>' }}"
        "{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
    ),
    end_of_turn="<|return|>",
    special=("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|endoftext|>"),
    padding="<|endoftext|>",
)

FAMILIES = {
    "llama3.1": LLAMA_31,
    "qwen2.5": QWEN_25,
    "qwen3": QWEN_3,
    "gemma3": GEMMA_3,
    "mistral": MISTRAL,
    "smollm2": SMOLLM2,
    "gpt-oss": GPT_OSS,
}


def tokenizer_of(family: Family, tiny_tokenizer: Path) -> PreTrainedTokenizerBase:
    """The tiny tokenizer with this family's template and tokens; the end of turn is the end of sequence."""
    tokenizer = tokenization.load(tiny_tokenizer)
    tokenizer.add_tokens(list(family.special), special_tokens=True)
    tokenizer.add_tokens(list(family.words))
    tokenizer.bos_token = family.beginning
    tokenizer.eos_token = family.end_of_turn
    tokenizer.pad_token = family.padding
    tokenizer.chat_template = family.template
    return tokenizer
