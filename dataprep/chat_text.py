"""From conversations to text through the chat template, with the place of every assistant turn that is trained.

A template may rewrite what was said before: Qwen3's strips the thinking from earlier answers, gpt-oss's ends the last
answer with another token than those before it. There, a conversation becomes several texts, each ending with the turn
that is last in it, as it is when the model says it:

    turn 1, 2, 3 as they are said --> the text of turn 3 holds turn 2 as it was said, but not turn 1
                                  --> two texts: up to turn 1; the whole, in which turns 2 and 3 are trained

So every turn is trained once, behind the very text that the model will be asked with. Where nothing is rewritten there
is one text. In the worst case a conversation of n turns becomes n texts, and its length grows with n squared.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from finecut.dataprep.conversations import Conversation
from finecut.dataprep.messages import ASSISTANT, TOOL, USER, Message
from finecut.dataprep.records import RecordError
from finecut.proto.config import UserError

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_OTHER_TEMPLATE = "set tokenization.chat_template_file to one that writes them"
# Thinking is what templates take out of earlier answers; an answer without it may get an empty block, the last only.
_REWRITING_PROBES = tuple(
    Conversation("", "a probe of the chat template", (Message(USER, "ping"), Message(ASSISTANT, answer)) * 2)
    for answer in ("pong", "<think>\nhm\n</think>\n\npong")
)


class MaskError(UserError):
    """The loss mask would be wrong."""


@dataclass(frozen=True)
class Turn:
    """Where one assistant turn stands in the rendered conversation."""

    number: int  # from 1, among the assistant's
    message: Message
    before: str  # rendered text up to what the assistant says
    through: str  # the same with what it says and the end of its turn


@dataclass(frozen=True)
class Rendering:
    """One conversation as text, or the part of it up to a turn that is rewritten later on."""

    place: str
    text: str
    turns: tuple[Turn, ...]  # those that are trained


class ChatText:
    """Renders conversations with the tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, last_turn_only: bool):
        self._tokenizer = tokenizer
        self._last_turn_only = last_turn_only
        self._special_tokens = tokenizer.special_tokens_map
        self._has_markers = bool(_MARKER.search(tokenizer.chat_template))
        special = sorted(
            (token.content for token in tokenizer.added_tokens_decoder.values() if token.special), key=len, reverse=True
        )
        self._special_text = re.compile("|".join(map(re.escape, special)) if special else r"(?!)")
        # Markers say where an answer stands in the history, which is not what the model says where it is rewritten.
        if self._has_markers and not last_turn_only:
            self._has_markers = not any(map(self._is_rewritten, _REWRITING_PROBES))

    def render(self, conversation: Conversation) -> tuple[Rendering, ...]:
        """One text or more, in the order of their turns; the last is the whole. Raises RecordError, MaskError."""
        self._check_special_tokens(conversation)
        if self._last_turn_only and not conversation.messages[-1].trained:
            raise RecordError("the last assistant message has weight 0, and loss_mask.turns is LAST_ASSISTANT_TURN")
        try:
            renderings = (
                (self._render_by_markers(conversation),)
                if self._has_markers
                else self._render_by_prefixes(conversation)
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise RecordError(f"the chat template refuses the conversation: {error}") from error
        self._check_tools(conversation, renderings[-1].text)
        return renderings

    def prompt(self, conversation: Conversation) -> str:
        """The text up to where the model is asked for the answer that the conversation lacks. Raises RecordError."""
        self._check_special_tokens(conversation)
        try:
            text = self._apply(_as_dicts(conversation.messages), conversation.tools, add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise RecordError(f"the chat template refuses the conversation: {error}") from error
        self._check_tools(conversation, text)
        return text

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
            if not all(says(text, expected) for expected in texts):
                what = "what the tool answers" if message.role == TOOL else "tool calls"
                raise RecordError(f"messages[{number}]: the chat template leaves out {what}; {_OTHER_TEMPLATE}")
        if conversation.tools and not re.search(r"\btools\b", str(self._tokenizer.chat_template)):
            raise RecordError(f"tools: the chat template leaves them out; {_OTHER_TEMPLATE}")

    def _render_by_markers(self, conversation: Conversation) -> Rendering:
        rendered, spans = render_jinja_template(
            conversations=[_as_dicts(conversation.messages)],
            tools=list(conversation.tools) or None,
            chat_template=self._tokenizer.chat_template,
            return_assistant_tokens_mask=True,
            **self._special_tokens,
        )
        text, answers = rendered[0], [m for m in conversation.messages if m.role == ASSISTANT]
        if len(spans[0]) != len(answers):
            raise MaskError(
                f"{conversation.place}: the chat template marks {len(spans[0])} generated spans in a conversation with "
                f"{len(answers)} assistant turns; put {{% generation %}} around each assistant message"
            )
        turns = tuple(
            Turn(number, answer, text[:start], text[:end])
            for number, (answer, (start, end)) in enumerate(zip(answers, spans[0], strict=True), start=1)
        )
        return Rendering(conversation.place, text, turns[-1:] if self._last_turn_only else turns)

    def _render_by_prefixes(self, conversation: Conversation) -> tuple[Rendering, ...]:
        messages, turns = conversation.messages, []
        dicts, tools = _as_dicts(messages), conversation.tools
        answers = [index for index, message in enumerate(messages) if message.role == ASSISTANT]
        for number, index in enumerate(answers, start=1):
            if not self._last_turn_only or number == len(answers):
                before = self._apply(dicts[:index], tools, add_generation_prompt=True)
                turns.append(Turn(number, messages[index], before, self._apply(dicts[: index + 1], tools)))
        return tuple(_group(conversation.place, turns))

    def _apply(
        self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]], add_generation_prompt: bool = False
    ) -> str:
        """As the tokenizer's `apply_chat_template`, which looks for the template anew each time."""
        (text,), _ = render_jinja_template(
            conversations=[messages],
            tools=list(tools) or None,
            chat_template=self._tokenizer.chat_template,
            add_generation_prompt=add_generation_prompt,
            **self._special_tokens,
        )
        return str(text)

    def _is_rewritten(self, probe: Conversation) -> bool:
        """Whether the first answer reads differently once there is a second one."""
        try:
            dicts = _as_dicts(probe.messages)
            alone, whole = self._apply(dicts[:2], ()), self._apply(dicts, ())
        except (jinja2.TemplateError, TypeError, KeyError):
            return False  # whatever it is, real conversations will show it
        return not whole.startswith(alone)


def says(text: str, expected: str) -> bool:
    """Whether `expected` stands in the text, as it is or as JSON writes it."""
    expected = expected.strip()
    as_json = (json.dumps(expected, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    return expected in text or any(form in text for form in as_json)


def _group(place: str, turns: Sequence[Turn]) -> list[Rendering]:
    """The fewest texts in which each turn stands as it is said; those without a trained turn are left out.

    The last message is the assistant's, so the text of the last turn is the whole conversation.
    """
    turns_by_text: dict[str, list[Turn]] = {}
    for turn in reversed(turns):
        home = next((text for text in turns_by_text if text.startswith(turn.through)), turn.through)
        turns_by_text.setdefault(home, []).append(turn)
    return [
        Rendering(place, text, tuple(reversed(group)))
        for text, group in reversed(turns_by_text.items())
        if any(turn.message.trained for turn in group)
    ]


def _as_dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [message.as_dict() for message in messages]
