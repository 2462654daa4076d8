"""Code of the user's: found, checked, copied into the run's folder, and part of the code's version."""

import sys
from pathlib import Path

import pytest

from finecut.proto import extension_pb2, job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import fingerprint, user_code

CODE = """
def greet(name, loud="false"):
    if name == "raise":
        raise ValueError("no such name")
    return name.upper() if loud == "true" else name

NOTHING = None
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of code that is on the path; its module is forgotten afterwards."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/greetings.py").write_text(CODE)
    (tmp_path / "mine/broken.py").write_text("x = 1 / 0")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "greetings", raising=False)
    user_code.use([str(tmp_path / "mine")])
    return tmp_path / "mine"


def code(path: str, **options: str) -> extension_pb2.UserCode:
    return extension_pb2.UserCode(path=path, options=options)


def job(folder: Path, *paths: Path) -> job_pb2.JobConfig:
    found = job_pb2.JobConfig(name="job")
    found.storage.root = str(folder / "runs")
    found.code.paths.extend(map(str, paths))
    return found


def test_a_factory_gets_its_arguments_and_its_options(folder: Path) -> None:
    assert user_code.make(code("greetings:greet"), "x", "ann") == "ann"
    assert user_code.make(code("greetings:greet", loud="true"), "x", "ann") == "ANN"


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        (code("no_such:greet"), "f: 'no_such:greet': importing no_such failed: .*ModuleNotFoundError.* in code.paths"),
        (code("broken:x"), r"importing broken failed: .*broken.py:1: ZeroDivisionError: division by zero"),
        (code("greetings:absent"), "greetings has no class or function 'absent'"),
        (code("greetings:NOTHING"), "greetings has no class or function 'NOTHING'"),
        (code("greetings:greet", polite="x"), r"is called with 1 argument, polite, and takes \(name, loud='false'\)"),
    ],
)
def test_what_cannot_be_called_is_refused_in_a_sentence(
    folder: Path, named: extension_pb2.UserCode, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        user_code.make(named, "f", "ann")


def test_an_exception_of_the_users_is_told_with_its_place(folder: Path) -> None:
    with pytest.raises(UserError, match=r"f: 'greetings:greet' failed: .*greetings.py:4: ValueError: no such name"):
        user_code.make(code("greetings:greet"), "f", "raise")


def test_a_snapshot_stays_as_it_is_when_the_code_changes(folder: Path) -> None:
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/x.pyc").write_text("")
    first = user_code.snapshot(job(folder.parent, folder))
    assert user_code.snapshot(job(folder.parent, folder)) == first
    (copy,) = map(Path, first.code.paths)
    assert copy.is_relative_to(folder.parent / "runs/job/code")
    assert sorted(path.name for path in copy.iterdir()) == ["broken.py", "greetings.py"]
    (folder / "greetings.py").write_text("changed = 1")
    second = user_code.snapshot(job(folder.parent, folder))
    assert first.code.paths != second.code.paths and (copy / "greetings.py").read_text() == CODE


def test_the_version_follows_the_code_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    first = user_code.version(job(tmp_path, folder))
    assert first.startswith(fingerprint.code_version() + ".")
    assert user_code.version(user_code.snapshot(job(tmp_path, folder))) == first
    (folder / "greetings.py").write_text("changed = 1")
    assert user_code.version(job(tmp_path, folder)) != first
    assert user_code.version(job(tmp_path)) == fingerprint.code_version()


def test_a_folder_of_data_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(UserError, match="holds more than 64 MiB"):
        user_code.snapshot(job(tmp_path, tmp_path))
    with pytest.raises(UserError, match="gone is not a folder"):
        user_code.snapshot(job(tmp_path, tmp_path / "gone"))
