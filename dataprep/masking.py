"""From conversations to token ids and a loss mask: exactly what the assistant says, with the token that ends its turn.

    conversation --template--> text, and for each assistant turn the text before it and the text up to its end
                 --tokenizer-> ids; a turn's tokens are those after the ids of the text before it
                 --checks----> the texts are prefixes of each other and so are their ids; the span decodes back to
                               what the assistant said; its last token is a special one; something is not trained

A chat template with {% generation %} markers says itself where the assistant speaks. For any other, the conversation
is rendered up to each turn that is trained, as it will be when the model is asked. A check that fails stops the stage:
a wrong mask looks healthy on a loss curve.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from finecut.dataprep.conversations import Conversation
from finecut.dataprep.documents import Document
from finecut.dataprep.messages import ASSISTANT, TOOL, USER, Message
from finecut.dataprep.records import BadRecord, RecordError
from finecut.proto.config import UserError

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_LAST_TURN_ADVICE = "loss_mask.turns to LAST_ASSISTANT_TURN, or "
_OTHER_TEMPLATE = "set tokenization.chat_template_file to one that writes them"
_PROBE = Conversation("", "a probe of the chat template", (Message(USER, "ping"), Message(ASSISTANT, "pong")))


class MaskError(UserError):
    """The loss mask would be wrong."""


@dataclass(frozen=True)
class _Turn:
    """Where one assistant turn stands in the rendered conversation."""

    number: int  # from 1, among the assistant's
    message: Message
    before: str  # rendered text up to what the assistant says
    through: str  # the same with what it says and the end of its turn


@dataclass(frozen=True)
class _Rendering:
    """One conversation as text."""

    place: str
    text: str
    turns: tuple[_Turn, ...]  # those that are trained

    def texts(self) -> Iterator[str]:
        yield self.text
        for turn in self.turns:
            yield turn.before
            yield turn.through


@dataclass(frozen=True)
class _Tokens:
    """The ids of one rendering and the span [start, end) of each of its assistant turns."""

    place: str
    ids: list[int]
    spans: list[tuple[int, int]]
    trained: list[bool]  # one a span: whether its turn counts


class Masker:
    """Turns conversations into documents. Raises MaskError at once where the template cannot be masked at all."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, last_turn_only: bool = False):
        self._tokenizer = tokenizer
        self._last_turn_only = last_turn_only
        self._has_markers = bool(_MARKER.search(tokenizer.chat_template))
        added = tokenizer.added_tokens_decoder
        self._special_ids = frozenset(number for number, token in added.items() if token.special)
        special = sorted((token.content for token in added.values() if token.special), key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, special)) if special else r"(?!)")
        # What the template itself says in an answer, such as an empty <think> block. Mostly nothing.
        self._preambles = {""}
        self._preambles.add(self._preamble())

    def documents(self, conversations: Sequence[Conversation]) -> list[Document | BadRecord]:
        """One result a conversation, in order. Raises MaskError, with the place, where a mask would be wrong."""
        bad: dict[int, BadRecord] = {}
        renderings: dict[int, _Rendering] = {}
        located: dict[int, _Tokens] = {}
        for number, conversation in enumerate(conversations):
            try:
                renderings[number] = self._render(conversation)
            except RecordError as error:
                bad[number] = BadRecord(conversation.source, conversation.place, str(error))
        ids_of = self._encode(renderings.values())
        for number, rendering in renderings.items():
            try:
                located[number] = self._locate(rendering, ids_of)
            except RecordError as error:
                bad[number] = BadRecord(conversations[number].source, rendering.place, str(error))
        self._check_text([renderings[number] for number in located], list(located.values()))
        documents = {number: self._document(tokens) for number, tokens in located.items()}
        return [bad[number] if number in bad else documents[number] for number in range(len(conversations))]

    def _preamble(self) -> str:
        """What the template puts before an answer, learned from a conversation with a known one."""
        try:
            rendering = self._render(_PROBE)
            tokens = self._locate(rendering, self._encode([rendering]))
        except RecordError as error:
            raise MaskError(f"the chat template cannot be used for a user and an assistant message: {error}") from error
        start, end = tokens.spans[0]
        said = _comparable(self._tokenizer.decode(tokens.ids[start : end - 1]))
        if said.count("pong") != 1 or not said.endswith("pong") or "ping" in said:
            raise MaskError(f"the chat template gives {said!r} to the assistant where it said 'pong'")
        return said.removesuffix("pong")

    # Rendering

    def _render(self, conversation: Conversation) -> _Rendering:
        self._check_special_tokens(conversation)
        if self._last_turn_only and not conversation.messages[-1].trained:
            raise RecordError("the last assistant message has weight 0, and loss_mask.turns is LAST_ASSISTANT_TURN")
        try:
            rendering = (
                self._render_by_markers(conversation) if self._has_markers else self._render_by_prefixes(conversation)
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise RecordError(f"the chat template refuses the conversation: {error}") from error
        self._check_tools(conversation, rendering.text)
        return rendering

    def _check_special_tokens(self, conversation: Conversation) -> None:
        for number, message in enumerate(conversation.messages):
            for text in message.texts():
                if found := self._special_text.search(text):
                    where = "content" if text is message.content else "tool_calls"
                    raise RecordError(
                        f"messages[{number}].{where} holds the special token {found.group()!r}; remove it"
                    )
        if found := self._special_text.search(json.dumps(conversation.tools, ensure_ascii=False)):
            raise RecordError(f"tools holds the special token {found.group()!r}; remove it")

    def _check_tools(self, conversation: Conversation, text: str) -> None:
        """A template that knows no tools drops them without a word, and the model learns to answer out of the blue."""
        for number, message in enumerate(conversation.messages):
            texts = [message.content] if message.role == TOOL else [call.name for call in message.tool_calls]
            if not all(_says(text, expected) for expected in texts):
                what = "what the tool answers" if message.role == TOOL else "tool calls"
                raise RecordError(f"messages[{number}]: the chat template leaves out {what}; {_OTHER_TEMPLATE}")
        if conversation.tools and not re.search(r"\btools\b", str(self._tokenizer.chat_template)):
            raise RecordError(f"tools: the chat template leaves them out; {_OTHER_TEMPLATE}")

    def _render_by_markers(self, conversation: Conversation) -> _Rendering:
        rendered, spans = render_jinja_template(
            conversations=[_as_dicts(conversation.messages)],
            tools=list(conversation.tools) or None,
            chat_template=self._tokenizer.chat_template,
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        text, answers = rendered[0], [m for m in conversation.messages if m.role == ASSISTANT]
        if len(spans[0]) != len(answers):
            raise MaskError(
                f"{conversation.place}: the chat template marks {len(spans[0])} generated spans in a conversation with "
                f"{len(answers)} assistant turns; put {{% generation %}} around each assistant message"
            )
        turns = tuple(
            _Turn(number, answer, text[:start], text[:end])
            for number, (answer, (start, end)) in enumerate(zip(answers, spans[0], strict=True), start=1)
        )
        return _Rendering(conversation.place, text, turns[-1:] if self._last_turn_only else turns)

    def _render_by_prefixes(self, conversation: Conversation) -> _Rendering:
        messages, turns = conversation.messages, []
        answers = [index for index, message in enumerate(messages) if message.role == ASSISTANT]
        for number, index in enumerate(answers, start=1):
            # A template may rewrite earlier turns, as Qwen3's does; that is no harm to a last turn trained alone.
            if not self._last_turn_only or number == len(answers):
                before = self._apply(conversation, index, add_generation_prompt=True)
                turns.append(_Turn(number, messages[index], before, self._apply(conversation, index + 1)))
        # The last message is the assistant's, so its turn ends with the conversation.
        return _Rendering(conversation.place, turns[-1].through, tuple(turns))

    def _apply(self, conversation: Conversation, num_messages: int, add_generation_prompt: bool = False) -> str:
        return self._tokenizer.apply_chat_template(
            _as_dicts(conversation.messages[:num_messages]),
            tools=list(conversation.tools) or None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )

    # Tokens

    def _encode(self, renderings: Iterable[_Rendering]) -> dict[str, list[int]]:
        """The ids of every text, in one call; a text that stands twice, as that of a last turn does, is done once."""
        texts = list(dict.fromkeys(text for rendering in renderings for text in rendering.texts()))
        if not texts:
            return {}
        # The template has written the special tokens; the tokenizer must add none of its own.
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return dict(zip(texts, encoded, strict=True))

    def _locate(self, rendering: _Rendering, ids_of: dict[str, list[int]]) -> _Tokens:
        """The spans of turns, from the ids of the texts before and through them."""
        ids, spans = ids_of[rendering.text], []
        for turn in rendering.turns:
            which = f"assistant turn {turn.number}"
            if not (turn.through.startswith(turn.before) and rendering.text.startswith(turn.through)):
                raise MaskError(
                    f"{rendering.place}: {which}: the chat template renders it differently when it stands alone and in "
                    f"the whole conversation; set {'' if self._last_turn_only else _LAST_TURN_ADVICE}"
                    "tokenization.chat_template_file to a template with {% generation %} markers"
                )
            before, through = ids_of[turn.before], ids_of[turn.through]
            if ids[: len(before)] != before or ids[: len(through)] != through:
                raise RecordError(
                    f"{which}: a token reaches across its border, so the model would be asked with other tokens than "
                    "it was trained on; remove the white space at the start of the answer"
                )
            spans.append((len(before), self._end_of_turn(rendering.place, which, ids, len(before), len(through))))
        return _Tokens(rendering.place, ids, spans, [turn.message.trained for turn in rendering.turns])

    def _end_of_turn(self, place: str, which: str, ids: list[int], start: int, end: int) -> int:
        """Position after the special token that ends the turn; a line break behind it is never generated."""
        while end > start and ids[end - 1] not in self._special_ids:
            end -= 1
        if end == start:
            raise MaskError(
                f"{place}: {which}: no special token ends it inside the trained part, so the model would never learn "
                "to stop; use a chat template that puts its end-of-turn token there"
            )
        return end

    def _document(self, tokens: _Tokens) -> Document:
        mask_T: np.ndarray = np.zeros(len(tokens.ids), dtype=bool)
        for (start, end), trained in zip(tokens.spans, tokens.trained, strict=True):
            mask_T[start:end] = trained
        if mask_T[0] or not mask_T.any():
            amount = "nothing" if not mask_T.any() else "its very first token"
            raise MaskError(
                f"{tokens.place}: {amount} would be trained; the chat template has no prompt before the answer"
            )
        return Document(np.array(tokens.ids, dtype=np.int32), mask_T)

    def _check_text(self, renderings: Sequence[_Rendering], tokens: Sequence[_Tokens]) -> None:
        """Every span must decode to what the assistant said; normalising tokenizers may change its Unicode form."""
        spans = [item.ids[start : end - 1] for item in tokens for start, end in item.spans]
        said = iter(self._tokenizer.batch_decode(spans, clean_up_tokenization_spaces=False) if spans else [])
        for rendering in renderings:
            for turn in rendering.turns:
                decoded, expected = _comparable(next(said)), _comparable(turn.message.content)
                starts = [(preamble + expected).strip() for preamble in self._preambles]
                if turn.message.tool_calls:
                    agrees = any(decoded.startswith(start) for start in starts) and _calls(decoded, turn.message)
                else:
                    agrees = decoded in starts
                if not agrees:
                    calls = f" and calls {', '.join(call.name for call in turn.message.tool_calls)}"
                    raise MaskError(
                        f"{rendering.place}: assistant turn {turn.number}: the trained tokens say "
                        f"{_shorten(decoded)!r}, the assistant said {_shorten(expected)!r}"
                        f"{calls if turn.message.tool_calls else ''}"
                    )


def _calls(decoded: str, message: Message) -> bool:
    """Whether the text has the name and every argument of each tool call, in whatever form the template writes them."""
    return all(_says(decoded, _comparable(text)) for call in message.tool_calls for text in call.texts())


def _says(text: str, expected: str) -> bool:
    """Whether `expected` stands in the text, as it is or as JSON writes it."""
    expected = expected.strip()
    as_json = (json.dumps(expected, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    return expected in text or any(form in text for form in as_json)


def _as_dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [message.as_dict() for message in messages]


def _comparable(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
