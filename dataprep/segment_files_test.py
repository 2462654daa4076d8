"""Finished segments: they come back as they were written, and nothing half-written counts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finecut.dataprep import segment_files
from finecut.dataprep.documents import Document, Pair, Task
from finecut.dataprep.records import BadRecord
from finecut.dataprep.segments import Outcome


def document(*ids: int, **fields: Any) -> Document:
    return Document(np.array(ids, np.int32), np.array([number % 2 == 1 for number in range(len(ids))]), **fields)


def write(folder: Path, number: int = 3) -> Outcome:
    outcome = Outcome(num_records=4, num_documents=3, num_tokens=9, num_bad=1, bad=[BadRecord("a", "x:2", "torn")])
    outcome.removed["languages"] = 2
    with segment_files.SegmentWriter(folder, number) as writer:
        writer.add([("x:1", [document(1, 2, 3, later_piece=True), document(4, 5)])])
        writer.add([])
        writer.add([("x:3", [document(6)]), ("x:4", [document(7, 8, 9)])])
        return writer.finish(outcome)


def test_records_come_back_with_their_documents_and_places(tmp_path: Path) -> None:
    write(tmp_path)
    found = list(segment_files.read(tmp_path, 3))
    assert [(place, [d.input_ids_T.tolist() for d in documents]) for place, documents in found] == [
        ("x:1", [[1, 2, 3], [4, 5]]),
        ("x:3", [[6]]),
        ("x:4", [[7, 8, 9]]),
    ]
    first = found[0][1][0]
    assert (first.loss_mask_T.tolist(), first.later_piece, first.truncated) == ([False, True, False], True, False)
    assert (first.input_ids_T.dtype, first.loss_mask_T.dtype) == (np.int32, bool)
    assert not found[0][1][1].later_piece


def test_all_fields_of_a_document_come_back(tmp_path: Path) -> None:
    fields = {"example_id": -(2**62), "pair": Pair(1, 0.5), "task": Task("a", verifier="exact")}
    with segment_files.SegmentWriter(tmp_path, 0) as writer:
        writer.add([("x:1", [document(1, 2, signature=np.array([2**32 - 1, 7], np.uint32), **fields)])])
        writer.finish(Outcome())
    ((_, (found,)),) = segment_files.read(tmp_path, 0)
    assert {name: getattr(found, name) for name in fields} == fields
    assert found.signature is not None
    assert (found.signature.tolist(), found.signature.dtype) == ([2**32 - 1, 7], np.uint32)


def test_the_outcome_comes_back(tmp_path: Path) -> None:
    written = write(tmp_path)
    assert segment_files.finished(tmp_path, 3) == written
    assert (written.removed["languages"], written.bad[0].place) == (2, "x:2")


def test_what_is_not_there_is_not_finished(tmp_path: Path) -> None:
    write(tmp_path)
    assert segment_files.finished(tmp_path, 4) is None


@pytest.mark.parametrize("damage", ["no note", "torn note", "other note", "no documents", "changed", "torn"])
def test_a_damaged_segment_is_not_finished(tmp_path: Path, damage: str) -> None:
    write(tmp_path)
    documents, note = tmp_path / "segments/00003.arrow", tmp_path / "segments/00003.json"
    match damage:
        case "no note":
            note.unlink()
        case "torn note":
            note.write_text(note.read_text()[:-5])
        case "other note":
            note.write_text("[]")
        case "no documents":
            documents.unlink()
        case "changed":
            content = bytearray(documents.read_bytes())
            content[len(content) // 2] ^= 1
            documents.write_bytes(content)
        case "torn":
            documents.write_bytes(documents.read_bytes()[:-100])
    assert segment_files.finished(tmp_path, 3) is None


def test_a_writer_that_breaks_off_leaves_nothing_that_counts(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), segment_files.SegmentWriter(tmp_path, 3) as writer:
        writer.add([("x:1", [document(1, 2)])])
        raise KeyboardInterrupt
    assert segment_files.finished(tmp_path, 3) is None
    assert not (tmp_path / "segments/00003.arrow").exists()
