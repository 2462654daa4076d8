"""Tokens a second, over all ranks, of the time spent in training steps (evaluation and checkpoints left out)."""

from __future__ import annotations

from finecut.trainer.data.batches import TokenCounts


class Throughput:
    """Sums tokens and seconds of steps until the rates are taken."""

    def __init__(self) -> None:
        self._tokens = TokenCounts()
        self._seconds = 0.0
        self.last_seconds = 0.0  # of the steps whose rates were taken last

    def add(self, tokens: TokenCounts, seconds: float) -> None:
        """Counts one step; `tokens` over all ranks."""
        self._tokens += tokens
        self._seconds += seconds

    def take(self) -> dict[str, float]:
        """Rates since the last call. `tokens_per_second` counts text without padding."""
        seconds = max(self._seconds, 1e-9)
        rates = {
            "tokens_per_second": self._tokens.useful / seconds,
            "trained_tokens_per_second": self._tokens.trained / seconds,
            "padded_tokens_per_second": self._tokens.padded / seconds,
        }
        self._tokens, self._seconds, self.last_seconds = TokenCounts(), 0.0, self._seconds
        return rates
