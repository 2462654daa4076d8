"""The Dockerfile keeps the rules, and each of its steps is resolved against the locks and the context."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from finecut.tools.image import check_node
from finecut.tools.image.dockerfile import lint, parse

FOLDER = Path(__file__).parent
LOCK = FOLDER.parents[1] / "third_party" / "python" / "requirements_cuda.lock"
STEPS = parse((FOLDER / "Dockerfile").read_text(encoding="utf-8"))


def test_keeps_every_rule() -> None:
    assert list(lint(STEPS)) == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("FROM base:latest\nUSER x", "line 1: FROM names an image that can change"),
        ("FROM ${BASE_IMAGE}\nRUN pip install torch\nUSER x", "installs packages without --no-cache-dir"),
        ("FROM ${BASE_IMAGE}\nRUN true && \\\n  apt-get install -y git\nUSER x", "line 2: RUN installs with apt-get"),
        ("FROM ${BASE_IMAGE}\nRUN curl -O x.sh\nUSER x", "fetches with curl what no lock pins"),
        ("FROM ${BASE_IMAGE}\nCOPY /etc/passwd .\nUSER x", "takes something from outside the context"),
        ("FROM ${BASE_IMAGE}\nUSER root", "the image runs as root"),
        ("FROM ${BASE_IMAGE}", "the image runs as root"),
        ("FROM ${BASE_IMAGE}\nEXPOSE 80\nUSER x", "EXPOSE is not an instruction"),
    ],
)
def test_a_broken_rule_is_named(lines: str, said: str) -> None:
    assert any(said in problem for problem in lint(parse(lines)))


def test_what_is_copied_is_in_the_context() -> None:
    with tarfile.open(FOLDER / "context.tar") as context:
        names = {name.removeprefix("./") for name in context.getnames()} - {"."}
        locked = context.extractfile(next(m for m in context.getmembers() if m.name.endswith("requirements_cuda.lock")))
        assert locked is not None and locked.read() == LOCK.read_bytes()
    copied = {source for step in STEPS for source in step.sources}
    assert copied == {"requirements_cuda.lock", "bundle.tar.gz"} and copied | {"Dockerfile"} == names


def test_what_pip_installs_is_the_copied_lock_with_a_hash_for_every_package() -> None:
    [copied] = [step for step in STEPS if "requirements_cuda.lock" in step.sources]
    target = copied.text.split()[-1]
    [pip] = [command for step in STEPS for command in step.commands if command[0].endswith("/pip")]
    assert pip[pip.index("--requirement") + 1] == target
    text = LOCK.read_text(encoding="utf-8")
    pins = re.findall(
        r"^([a-z][\w.-]*)(?:\[[\w,-]+\])?==[\w.+]+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE
    )
    assert len(pins) == len(re.findall(r"^[a-zA-Z]", text, re.MULTILINE)) > 200
    assert set(check_node.NEEDED) <= set(pins)
    assert not set(check_node.OPTIONAL) & set(pins)  # from the base image, or not at all


def test_modules_that_it_runs_are_in_the_bundle(tmp_path: Path) -> None:
    with tarfile.open(FOLDER / "context.tar") as context:
        context.extractall(tmp_path, filter="data")
    with tarfile.open(tmp_path / "bundle.tar.gz") as bundle:
        names = set(bundle.getnames())
    text = " ".join(step.text for step in STEPS if step.name in ("RUN", "CMD", "ENTRYPOINT"))
    modules = re.findall(r"finecut(?:\.\w+)+", text)
    assert len(modules) == 2
    for module in modules:
        assert module.replace(".", "/") + ".py" in names


def test_the_check_of_a_node_fails_without_what_it_needs() -> None:
    code = "import sys; sys.modules['vllm'] = None; from finecut.tools.image import check_node as c; sys.exit(c.main())"
    path = {"PYTHONPATH": ":".join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path)
    assert found.returncode == 1 and "vllm: " in found.stderr and "torch 2." in found.stdout, found.stderr
