"""Reads config.json field by field; what is wrong or not understood is collected and told at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finecut.proto.config import UserError

# Fields that say nothing about what the decoder computes: provenance, how to generate, how to load.
_HARMLESS_NAMES = """
    add_cross_attention architectures attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id
    cache_implementation chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty
    do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id id2label initializer_range is_decoder is_encoder_decoder
    is_llama_config label2id length_penalty max_length min_length model_type no_repeat_ngram_size num_beam_groups
    num_beams num_labels num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix
    problem_type pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p
    torch_dtype torchscript transformers.js_config transformers_version typical_p unsloth_fixed unsloth_version
    use_bfloat16 use_cache
"""
_HARMLESS = frozenset(_HARMLESS_NAMES.split())
# Fields of any family that change the computation in a way the decoder does not, and the values it takes for them.
_FIXED: dict[str, tuple[Any, ...]] = {
    "attention_dropout": (0, None),
    "partial_rotary_factor": (1, None),
    "pretraining_tp": (1, None),
    "quantization_config": (None,),
    "rope_interleaved": (False, None),
}
_ABSENT = object()


class Fields:
    """The fields of one config.json.

    Each method returns a value of the right type in any case, so that reading goes on to the next problem; `finish`
    raises for all of them.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._known: set[str] = set()
        self._problems: list[str] = []
        for name, allowed in _FIXED.items():
            self.fixed(name, *allowed)

    def get(self, name: str, default: Any = None) -> Any:
        """The value, whatever it is; `default` where it is absent."""
        self._known.add(name)
        return self._values.get(name, default)

    def problem(self, text: str) -> None:
        """Notes what is wrong."""
        self._problems.append(text)

    def size(self, name: str, default: int | None = None, smallest: int = 1, largest: int | None = None) -> int:
        """A whole number in a range; null and absent mean `default`, and an error where there is none."""
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
            self.problem(f"{name}: {value!r} must be a whole number of at least {smallest}")
            return max(smallest, 1)
        if largest is not None and value > largest:
            self.problem(f"{name}: {value} must be at most {largest}")
        return value

    def real(self, name: str, default: float) -> float:
        """A positive number; null and absent mean `default`."""
        value = self.get(name)
        value = default if value is None else value
        if not _is_number(value) or value <= 0:
            self.problem(f"{name}: {value!r} must be a number greater than 0")
            return default
        return float(value)

    def optional_real(self, name: str) -> float | None:
        """A positive number, or None for null and absent."""
        return None if self.get(name) is None else self.real(name, 1.0)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false; null means `default`."""
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            self.problem(f"{name}: {value!r} must be true or false")
            return default
        return value

    def fixed(self, name: str, *allowed: Any) -> None:
        """A field that, where it is there, must have one of the allowed values."""
        value = self.get(name, _ABSENT)
        if value is not _ABSENT and value not in allowed:
            self.problem(f"{name}: {value!r} is not supported; it must be {allowed[0]!r}")

    def indices(self, name: str, end: int) -> tuple[int, ...]:
        """A list of layer numbers below `end`; null and absent mean none."""
        value = self.get(name) or []
        if not isinstance(value, list) or not all(_is_whole(i) and 0 <= i < end for i in value):
            self.problem(f"{name}: {value!r} must be a list of layer numbers from 0 to {end - 1}")
            return ()
        return tuple(value)

    def ignore(self, *names: str) -> None:
        """Fields of the family that do not matter to the decoder."""
        self._known.update(names)

    def unknown(self) -> list[str]:
        """Names of the fields that are switched on, were not asked for, and may change what is computed."""
        return [
            name
            for name, value in self._values.items()
            if name not in self._known | _HARMLESS and not name.startswith("_") and value not in (None, False, [], {})
        ]

    def finish(self) -> None:
        """Raises UserError when anything was wrong, or is not known and switched on."""
        unknown = [
            f"{name}: {self._values[name]!r} is not known, so what it changes would be lost; remove it if it changes"
            " nothing"
            for name in self.unknown()
        ]
        if problems := self._problems + unknown:
            raise UserError("; ".join(problems))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
