"""Keeps every bad record until the end, so that a user sees them all at once."""

from collections import Counter
from collections.abc import Sequence

from finecut.dataprep.records import BadRecord
from finecut.proto.config import UserError

# A report longer than this is not read; the count says how many there are.
MAX_LISTED = 20


class Problems:
    """Bad records and cut documents, and what the job allows of each."""

    def __init__(self, max_bad_records: int, max_truncated_fraction: float):
        self._max_bad_records = max_bad_records
        self._max_truncated_fraction = max_truncated_fraction
        self._truncated: list[str] = []
        self._num_truncated = 0
        self.listed: list[BadRecord] = []
        self.bad_by_source: Counter[str] = Counter()

    def add(self, source: str, number: int, listed: Sequence[BadRecord]) -> None:
        """Takes `number` more bad records of a source, of which the first are listed."""
        self.bad_by_source[source] += number
        self.listed += listed[: MAX_LISTED - len(self.listed)]

    def add_truncated(self, place: str, num_tokens: int) -> None:
        self._num_truncated += 1
        if len(self._truncated) < MAX_LISTED:
            self._truncated.append(f"{place}: {num_tokens:,} tokens")

    @property
    def hopeless(self) -> bool:
        """Whether the stage fails whatever else is read."""
        return self.bad_by_source.total() > self._max_bad_records

    def check_bad(self, stopped_after: str = "") -> None:
        """Raises UserError, with the first MAX_LISTED, where there are more bad records than allowed.

        `stopped_after` says, where not all was read, how far it was.
        """
        if self.hopeless:
            raise UserError(
                f"data_prep.error_budget.max_records: {self.bad_by_source.total():,} bad records{stopped_after}, "
                f"{self._max_bad_records:,} allowed; correct them, remove them or allow more\n" + self.report()
            )

    def check_truncated(self, num_documents: int) -> None:
        """Raises UserError, with the first MAX_LISTED, where more of the documents were cut than allowed."""
        if self._num_truncated > self._max_truncated_fraction * num_documents:
            raise UserError(
                f"data_prep.error_budget.max_truncated_fraction: {self._num_truncated:,} of {num_documents:,} "
                f"documents are cut to fit a block, {self._max_truncated_fraction:g} of them may be; "
                "raise packing.block_size or the budget\n" + _listing(self._truncated, self._num_truncated)
            )

    def report(self) -> str:
        """The bad records, one a line."""
        return _listing([str(bad) for bad in self.listed], self.bad_by_source.total())


def _listing(lines: list[str], total: int) -> str:
    more = [f"... and {total - len(lines):,} more"] if total > len(lines) else []
    return "\n".join(f"  {line}" for line in lines + more)
