"""The token that ends an answer: what the chat template writes must be what generation stops at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finecut.proto.config import UserError

_ANSWER = "ANSWER"


def end_of_turn(tokenizer: Any) -> int | None:
    """Id of the special token that the chat template writes after an assistant's answer, or None when it has none."""
    return next(iter(after_answer(tokenizer)), None)


def after_answer(tokenizer: Any) -> list[int]:
    """What the chat template writes after an answer, from its special token on: often that token and a line break."""
    if not tokenizer.chat_template:
        return []
    conversation = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": _ANSWER}]
    after = tokenizer.apply_chat_template(conversation, tokenize=False).rpartition(_ANSWER)[2]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return ids[next((place for place, token in enumerate(ids) if token in special), len(ids)) :]


def stop_tokens(folder: Path) -> list[int]:
    """Where generation stops: generation_config.json's eos_token_id, or config.json's where that says nothing."""
    for name in ("generation_config.json", "config.json"):
        stop = _read(folder / name).get("eos_token_id")
        if stop is not None:
            return stop if isinstance(stop, list) else [stop]
    return []


def add_stop_token(folder: Path, token: int) -> None:
    """Makes generation stop at `token` too, in `folder`'s generation_config.json."""
    model = _read(folder / "config.json")
    fields = {name: model[name] for name in ("bos_token_id", "pad_token_id") if model.get(name) is not None}
    fields |= _read(folder / "generation_config.json")
    fields["eos_token_id"] = [*stop_tokens(folder), token]
    (folder / "generation_config.json").write_text(
        json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
