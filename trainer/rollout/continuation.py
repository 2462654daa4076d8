"""The tokens between two turns of the policy.

    ... sampled answer <|im_end|> | \\n <|im_start|> user \\n Too high. <|im_end|> \\n <|im_start|> assistant \\n
        kept as it was sampled      rendered here

Only what the environment says is tokenised. What the policy sampled is never decoded and encoded again: that need not
give the same ids, and the policy would be trained on tokens that it did not sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finecut.proto.config import UserError

# Stands for the policy's answer while the template is rendered; cut off before anything is tokenised.
_ANSWER = "finecut-answer"
_BEFORE = ({"role": "user", "content": "finecut-question"}, {"role": "assistant", "content": _ANSWER})


class TurnRenderer:
    """Continues a conversation by its tokenizer's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises UserError for a tokenizer without a chat template."""
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("multi-turn rollouts need a tokenizer with a chat template; this one has none")
        self._tokenizer = tokenizer

    def text_of(self, token_ids: Sequence[int]) -> str:
        """A turn as the environment reads it."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def between_turns(self, last_token_id: int, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...] | None:
        """What follows a turn that was sampled up to `last_token_id`, up to where the next one begins.

        None when that token does not end a turn in the template (end of text, say): there is no next turn.
        Raises UserError when the template writes a turn differently once another follows, so that what was sampled
        would not be what the template shows.
        """
        before = self._render(_BEFORE, generation_prompt=False)
        after = self._render((*_BEFORE, *messages), generation_prompt=True)
        if not after.startswith(before):
            raise UserError(
                "the chat template writes an assistant turn differently once another message follows, so the tokens "
                "that were sampled cannot be kept; use a template without such a rule, or one turn"
            )
        rest = after[before.rindex(_ANSWER) + len(_ANSWER) :]
        token_ids = self._tokenizer(rest, add_special_tokens=False)["input_ids"]
        if last_token_id not in token_ids:
            return None
        end = token_ids.index(last_token_id)
        if self._tokenizer.decode(token_ids[:end]).strip():
            return None  # it stands further on, after something that was not sampled
        return tuple(token_ids[end + 1 :])

    def _render(self, messages: Sequence[Mapping[str, Any]], generation_prompt: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation_prompt
            )
        except Exception as error:  # a template is a program, and may raise anything
            raise UserError(f"the chat template cannot show the environment's messages: {error}") from error
        if _ANSWER not in text:
            raise UserError("the chat template does not show what the assistant said, so turns cannot be continued")
        return str(text)
