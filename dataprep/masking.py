"""From conversations to token ids and a loss mask: exactly what the assistant says, with the token that ends its turn.

    conversation --template--> text, and for each assistant turn the text before it and the text up to its end
                 --tokenizer-> ids; a turn's tokens are those after the ids of the text before it
                 --checks----> the texts are prefixes of each other and so are their ids; the span decodes back to
                               what the assistant said; its last token is a special one; something is not trained

A chat template with {% generation %} markers says itself where the assistant speaks. For any other, and for one that
rewrites earlier turns (see chat_text), the conversation is rendered up to each turn that is trained, as it will be when
the model is asked; what cannot stand in one document becomes several. A check that fails stops the stage:
a wrong mask looks healthy on a loss curve.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from finecut.dataprep.chat_text import ChatText, MaskError, Rendering, says
from finecut.dataprep.conversations import Conversation
from finecut.dataprep.decoding import Decoder
from finecut.dataprep.documents import Document
from finecut.dataprep.encoding import Encoded, Encoder
from finecut.dataprep.messages import ASSISTANT, USER, Message
from finecut.dataprep.records import BadRecord, RecordError

_LAST_TURN_ADVICE = "loss_mask.turns to LAST_ASSISTANT_TURN, or "
_PROBE = Conversation("", "a probe of the chat template", (Message(USER, "ping"), Message(ASSISTANT, "pong")))


@dataclass(frozen=True)
class _Tokens:
    """The ids of one rendering and the span [start, end) of each of its assistant turns."""

    place: str
    ids_T: np.ndarray  # int32
    spans: list[tuple[int, int]]
    trained: list[bool]  # one a span: whether its turn counts


class Masker:
    """Turns conversations into documents. Raises MaskError at once where the template cannot be masked at all."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, last_turn_only: bool = False):
        self._tokenizer = tokenizer
        self._last_turn_only = last_turn_only
        self._text = ChatText(tokenizer, last_turn_only)
        self._encoder = Encoder(tokenizer)
        self._decoder = Decoder(tokenizer)
        added = tokenizer.added_tokens_decoder
        self._special_ids = frozenset(number for number, token in added.items() if token.special)
        # What the template itself says in an answer, such as an empty <think> block. Mostly nothing.
        self._preambles = {""}
        self._preambles.add(self._preamble())

    def documents(self, conversations: Sequence[Conversation]) -> list[tuple[Document, ...] | BadRecord]:
        """One result a conversation, in order: a document, and before it those of turns that the template rewrites.

        Raises MaskError, with the place, where a mask would be wrong.
        """
        bad: dict[int, BadRecord] = {}
        renderings: dict[int, tuple[Rendering, ...]] = {}
        located: dict[int, list[_Tokens]] = {}
        for number, conversation in enumerate(conversations):
            try:
                renderings[number] = self._text.render(conversation)
            except RecordError as error:
                bad[number] = BadRecord(conversation.source, conversation.place, str(error))
        encoded = iter(self._encode([rendering for parts in renderings.values() for rendering in parts]))
        for number, parts in renderings.items():
            found = [next(encoded) for _ in parts]
            try:
                located[number] = list(map(self._locate, parts, found))
            except RecordError as error:
                bad[number] = BadRecord(conversations[number].source, conversations[number].place, str(error))
        self._check_text(
            [rendering for number in located for rendering in renderings[number]],
            [tokens for parts in located.values() for tokens in parts],
        )
        documents = {number: self._documents(parts) for number, parts in located.items()}
        return [bad[number] if number in bad else documents[number] for number in range(len(conversations))]

    def _preamble(self) -> str:
        """What the template puts before an answer, learned from a conversation with a known one."""
        try:
            (rendering,) = self._text.render(_PROBE)
            tokens = self._locate(rendering, *self._encode([rendering]))
        except RecordError as error:
            raise MaskError(f"the chat template cannot be used for a user and an assistant message: {error}") from error
        start, end = tokens.spans[0]
        said = _comparable(self._tokenizer.decode(tokens.ids_T[start : end - 1]))
        if said.count("pong") != 1 or not said.endswith("pong") or "ping" in said:
            raise MaskError(f"the chat template gives {said!r} to the assistant where it said 'pong'")
        return said.removesuffix("pong")

    def _encode(self, renderings: Sequence[Rendering]) -> list[Encoded]:
        """The ids of every text, with the borders of its turns: before and through the first, the second ..."""
        borders = [self._borders(rendering) for rendering in renderings]
        return self._encoder.encode_with_borders([rendering.text for rendering in renderings], borders)

    def _borders(self, rendering: Rendering) -> list[int]:
        for turn in rendering.turns:
            if not (turn.through.startswith(turn.before) and rendering.text.startswith(turn.through)):
                raise MaskError(
                    f"{rendering.place}: assistant turn {turn.number}: the chat template writes another text before "
                    "the answer than the one that the model is asked with; set "
                    f"{'' if self._last_turn_only else _LAST_TURN_ADVICE}"
                    "tokenization.chat_template_file to a template with {% generation %} markers"
                )
        return [len(text) for turn in rendering.turns for text in (turn.before, turn.through)]

    def _locate(self, rendering: Rendering, encoded: Encoded) -> _Tokens:
        """The spans of turns. Raises RecordError where a text does not begin with the ids of its part."""
        spans = []
        borders = iter(encoded.borders)
        for turn, start, end in zip(rendering.turns, borders, borders, strict=True):
            which = f"assistant turn {turn.number}"
            if start is None or end is None:
                raise RecordError(
                    f"{which}: a token reaches across its border, so the model would be asked with other tokens than "
                    "it was trained on; remove the white space at the start of the answer"
                )
            spans.append((start, self._end_of_turn(rendering.place, which, encoded.ids_T, start, end)))
        return _Tokens(rendering.place, encoded.ids_T, spans, [turn.message.trained for turn in rendering.turns])

    def _end_of_turn(self, place: str, which: str, ids_T: np.ndarray, start: int, end: int) -> int:
        """Position after the special token that ends the turn; a line break behind it is never generated."""
        while end > start and int(ids_T[end - 1]) not in self._special_ids:
            end -= 1
        if end == start:
            raise MaskError(
                f"{place}: {which}: no special token ends it inside the trained part, so the model would never learn "
                "to stop; use a chat template that puts its end-of-turn token there"
            )
        return end

    def _documents(self, parts: Sequence[_Tokens]) -> tuple[Document, ...]:
        *earlier, whole = map(self._document, parts)
        return (*(replace(document, earlier_turn=True) for document in earlier), whole)

    def _document(self, tokens: _Tokens) -> Document:
        mask_T: np.ndarray = np.zeros(len(tokens.ids_T), dtype=bool)
        for (start, end), trained in zip(tokens.spans, tokens.trained, strict=True):
            mask_T[start:end] = trained
        if mask_T[0] or not mask_T.any():
            amount = "nothing" if not mask_T.any() else "its very first token"
            raise MaskError(
                f"{tokens.place}: {amount} would be trained; the chat template has no prompt before the answer"
            )
        return Document(tokens.ids_T, mask_T)

    def _check_text(self, renderings: Sequence[Rendering], tokens: Sequence[_Tokens]) -> None:
        """Every span must decode to what the assistant said; normalising tokenizers may change its Unicode form."""
        spans = [item.ids_T[start : end - 1] for item in tokens for start, end in item.spans]
        said = iter(self._decoder.decode(spans))
        for rendering in renderings:
            for turn in rendering.turns:
                decoded, expected = next(said), turn.message.content
                if decoded == expected and not turn.message.tool_calls:
                    continue
                decoded, expected = _comparable(decoded), _comparable(expected)
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
    return all(says(decoded, _comparable(text)) for call in message.tool_calls for text in call.texts())


def _comparable(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
