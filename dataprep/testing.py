"""A tiny real tokenizer for tests: byte-level BPE with a ChatML-like template that marks what the assistant says."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, TURN_START, TURN_END)

# Jinja trims the newline after a block tag, so each line of the template adds only what it prints.
MARKED_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# SmolLM2-Instruct's template: no generation markers, and a system message that nobody wrote.
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_SENTENCES = """
What is the capital of France? The capital of France is Paris, a city on the river Seine.
How are you today? I am doing well, thank you for asking; how can I help you this morning?
A language model reads some words and predicts the next one. Training makes its predictions better.
Please write a short story about a small robot that learns to paint pictures of the mountains and the sea.
Once upon a time there was a little robot. It lived in a quiet workshop between the forest and the harbour.
Every evening it mixed yellow, orange and violet until the colours looked exactly like the sunset outside.
The system keeps user and assistant messages apart: each turn has a role, a beginning and an end.
Two plus three equals five, seven times eight equals fifty-six, and one hundred divided by four is twenty-five.
Why does bread rise? Because yeast eats sugar and gives off carbon dioxide, which the dough holds in bubbles.
Which computer languages do you understand? Mostly Python, although people also ask about Java and about C.
"""


def write_tiny_tokenizer(folder: Path, vocabulary_size: int = 512, chat_template: str = MARKED_TEMPLATE) -> Path:
    """Writes a tokenizer that `AutoTokenizer` loads, and returns its folder.

    Padding, beginning, end and end of turn are four distinct tokens, with ids 0, 1, 2 and 4. Equal arguments give
    equal files. Raises ValueError where the built-in sentences cannot fill the vocabulary (261 to 672 tokens).
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_SENTENCES.strip().splitlines(), trainer)
    if backend.get_vocab_size() != vocabulary_size:
        raise ValueError(f"vocabulary_size {vocabulary_size}: the sentences give {backend.get_vocab_size()} tokens")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[TURN_START, TURN_END],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return Path(folder)
