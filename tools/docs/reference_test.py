"""The committed reference is what the protos say."""

import difflib
from pathlib import Path

import pytest

from finecut.proto import job_pb2
from finecut.tools.docs import reference

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page() -> str:
    return reference.page()


def test_the_committed_page_is_current(page: str) -> None:
    committed = (ROOT / reference.PAGE).read_text(encoding="utf-8")
    changes = list(difflib.unified_diff(committed.splitlines(), page.splitlines(), "committed", "protos", lineterm=""))
    assert not changes, "\n".join([*changes[:60], "mend it with: bazel run //tools/docs:reference"])


def test_every_field_has_a_meaning(page: str) -> None:
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert not [row[0] for row in rows if not row[-1].strip(" |")]


def test_links_lead_to_headings(page: str) -> None:
    headings = {
        line.removeprefix("## ").lower().replace(".", "") for line in page.splitlines() if line.startswith("## ")
    }
    links = {part.partition(")")[0] for part in page.split("](#")[1:]}
    assert links and links <= headings


def test_fields_say_what_they_mean_default_to_and_lack(page: str) -> None:
    assert "| `max_steps` | integer | *One of `length`.* Optimizer steps." in page
    assert "Decay of the first moment. Unset: 0.9. |" in page
    assert all(f"| `{field.name}` |" in page for field in job_pb2.Stage.DESCRIPTOR.fields)
