"""Runs the rules over the blocks of all splits.

Splits are given with evaluation first: its documents' hashes are held, and those of training are looked up in them.
Memory is a batch of blocks and 24 to 48 bytes for each document held out.
"""

import numpy as np
from transformers import PreTrainedTokenizerBase

from finecut.dataprep.digests import DigestSet
from finecut.dataprep.documents import digest_of_ids
from finecut.dataprep.lint.findings import Finding, Findings, excerpt
from finecut.dataprep.lint.layout import Layout
from finecut.dataprep.lint.rules import RULES, Expectations
from finecut.dataprep.split import EVALUATION
from finecut.proto import artifact_pb2

DUPLICATES, MANIFEST, TRUNCATED, EMPTY = "duplicates across splits", "manifest", "truncated documents", "empty blocks"
RULE_NAMES = (*(rule.name for rule in RULES), EMPTY, DUPLICATES, TRUNCATED, MANIFEST)


class Linter:
    """Takes batches of blocks in order, then says what it found."""

    def __init__(self, expected: Expectations, tokenizer: PreTrainedTokenizerBase):
        self.findings = Findings()
        self._expected = expected
        self._tokenizer = tokenizer
        self._held_out = DigestSet()
        self._counts: dict[str, artifact_pb2.DataArtifact.Split] = {}

    def add(self, split: str, layout: Layout, first_block: int) -> None:
        """Looks at a batch whose first block has this number in its split."""
        for rule in RULES:
            self._report(split, layout, first_block, rule.name, rule.says, rule.find(layout, self._expected))
        for block in np.flatnonzero(layout.block_tokens == 0):
            says = "the block holds no document"
            self._report(split, layout, first_block, EMPTY, says, np.array([block * layout.block_size]))
        self._compare_splits(split, layout, first_block)
        counts = self._counts.setdefault(split, artifact_pb2.DataArtifact.Split(name=split))
        counts.block_count += layout.num_blocks
        counts.document_count += len(layout.document_start_D)
        counts.token_count += int(layout.lengths.sum())
        counts.trained_token_count += int(layout.mask.sum())

    def finish(self, data: artifact_pb2.DataArtifact) -> Findings:
        """Compares the whole with what the manifest says and with the error budget."""
        for claimed in data.splits:
            counted = self._counts.get(claimed.name, artifact_pb2.DataArtifact.Split())
            # Documents that the trainer packs have no blocks yet: those looked at here are ours.
            blocks = () if data.HasField("packed") and not data.packed else ("block_count",)
            for field in (*blocks, "document_count", "token_count", "trained_token_count"):
                said, found = getattr(claimed, field), getattr(counted, field)
                if said != found:
                    reason = f"the manifest says {field} {said:,}, the shards hold {found:,}"
                    self.findings.add(Finding(MANIFEST, reason, claimed.name))
        self._check_truncation(data)
        return self.findings

    def _check_truncation(self, data: artifact_pb2.DataArtifact) -> None:
        num_documents = sum(split.document_count for split in data.splits)
        num_cut = sum(split.truncated_document_count for split in data.splits)
        allowed = self._expected.max_truncated_fraction
        if num_cut > allowed * num_documents:
            reason = (
                f"{num_cut:,} of {num_documents:,} documents are cut, {allowed:g} of them may be; "
                "raise packing.block_size or error_budget.max_truncated_fraction"
            )
            self.findings.add(Finding(TRUNCATED, reason, "all splits"))

    def _compare_splits(self, split: str, layout: Layout, first_block: int) -> None:
        if split != EVALUATION and not self._held_out:
            return
        duplicates = []
        for number, start in enumerate(layout.document_start_D.tolist()):
            ids = layout.document(number)
            if self._expected.pairs:
                ids = ids[: layout.prompt_length(number)]
            digest = digest_of_ids(ids)
            if split == EVALUATION:
                self._held_out.add(digest)
            elif digest in self._held_out:
                duplicates.append(start)
        what = "prompt" if self._expected.pairs else "document"
        says = f"the {what} stands in the evaluation split too; remove one of the two records"
        self._report(split, layout, first_block, DUPLICATES, says, np.array(duplicates, np.int64))

    def _report(self, split: str, layout: Layout, first_block: int, rule: str, says: str, places: np.ndarray) -> None:
        """One finding for each document, or stretch of padding, with its first place."""
        if not len(places):
            return
        _, first = np.unique(layout.run_of[places], return_index=True)
        places = places[first]
        for number, place in enumerate(places.tolist()):
            if not self.findings.wants_more:
                self.findings.count(rule, len(places) - number)
                return
            block, inside = divmod(place, layout.block_size)
            ids_L = layout.ids[block * layout.block_size :][: layout.block_size]
            document = int(layout.document_ids[place])
            shown = excerpt(ids_L, inside, self._tokenizer)
            self.findings.add(
                Finding(rule, says, split, first_block + block, None if document < 0 else document, shown)
            )
