"""The contract's style: buf's standard rules, with a comment on everything."""

import shutil
from pathlib import Path

import pytest

from finecut.tools.lint import sources


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """The protos on their virtual path."""
    folder = tmp_path / "finecut" / "proto"
    folder.mkdir(parents=True)
    for proto in (sources.ROOT / "proto").glob("*.proto"):
        shutil.copyfile(proto, folder / proto.name)
    shutil.copyfile(sources.ROOT / "buf.yaml", tmp_path / "buf.yaml")
    return tmp_path


def test_buf_finds_nothing(module: Path) -> None:
    assert not sources.run(["buf", "lint"], folder=module)


def test_buf_finds_a_field_without_a_comment(module: Path) -> None:
    proto = module / "finecut" / "proto" / "job.proto"
    proto.write_text(proto.read_text().replace("  // Machines. Unset: this machine.\n", ""))
    assert "cluster" in sources.run(["buf", "lint"], folder=module)
