"""What the documentation says holds: commands run, jobs are valid, links lead somewhere.

A command that test_command has no way to check fails: add one.
"""

import ast
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finecut.launcher.testing import environment
from finecut.proto.config import UserError, load_job
from finecut.tools.docs import commands, desk
from finecut.tools.docs.commands import Found

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
# Runs that commands name, beside those that are named like a job.
NAMES = ("first", "second", "quickstart")
PLACEHOLDERS = {"FILE": "job.textproto", "NAME": "my-model", "DIR": "runs", "RUN_A": "first", "RUN_B": "second"}
PART = re.compile(r"\s*[a-z_]+ \{")
# Programs that are run as they stand, beside the launcher.
RUN = {
    "//tools:compare": "finecut.tools.compare.main",
    "//tools/gpu_bench:planned": "finecut.tools.gpu_bench.planned",
    "//launcher/security:certificates": "finecut.launcher.security.certificates",
}
# Verbs of the launcher that end at once for runs that are not at work, and what is run in place of those that work.
HARMLESS = ("validate", "plan", "status", "logs", "cancel")
IN_PLACE_OF = {"run": "validate", "resume": "status"}
# Programs of others. They are not run: the reason, and what holds the line beside them.
ELSEWHERE = {
    r"git clone .*": "needs a network",
    r"pre-commit install": "changes the repository; tools/lint/pre_commit_test.py runs its hooks",
    r"ssh -L .*": "needs a second machine",
    r"grpcurl .*": "is a program of the reader's; launcher/service's tests make the same calls",
    r"kill -TERM \S+": "needs a run at work; trainer/main_test.py and launcher/kill_test.py send it",
    r"kill PID.*": "needs an endpoint; trainer/serving/deploy_test.py ends one",
    r"kill -9": "ends nothing by itself; launcher/kill_test.py sends it",
    r"curl http://127\.0\.0\.1.*": "needs an endpoint; trainer/serving/deploy_test.py asks one",
    r"docker build.*": "needs Docker; tools/image's tests read the Dockerfile",
}


def all_found(find: Callable[[Path, str], list[Found]]) -> list[Found]:
    return [found for page in PAGES for found in find(page.relative_to(ROOT), page.read_text(encoding="utf-8"))]


COMMANDS = {found.text: found for found in reversed(all_found(commands.commands))}
JOBS = all_found(lambda page, text: commands.blocks(page, text, "textproto"))
# Blocks of no named language that begin like a message.
PARTS = [found for found in all_found(lambda page, text: commands.blocks(page, text, "")) if PART.match(found.text)]
WHOLE_JOBS = [found for found in JOBS if re.search(r"^name:", found.text, re.MULTILINE)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where commands run: the jobs of all pages, README's also as job.textproto, and the examples."""
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUILD_WORKING_DIRECTORY", str(folder))
        desk.lay_out(folder, [found.text for found in WHOLE_JOBS], NAMES)
        readme = next(found for found in WHOLE_JOBS if found.page.name == "README.md")
        (folder / "job.textproto").write_text(readme.text)
        (folder / "examples").symlink_to(ROOT / "examples")
        (folder / "runs").mkdir(exist_ok=True)
        yield folder


def test_there_is_something_to_check() -> None:
    assert len(PAGES) > 8 and len(COMMANDS) > 20 and len(WHOLE_JOBS) > 4


@pytest.mark.parametrize("text", sorted(COMMANDS))
def test_command(folder: Path, text: str) -> None:
    if reason := next((reason for pattern, reason in ELSEWHERE.items() if re.fullmatch(pattern, text)), None):
        pytest.skip(reason)
    words = commands.arguments(text)
    program, rest = words[0].rpartition("/")[2], words[1:]
    if program in ("bazel", "bazelw"):
        check_bazel(folder, rest)
    elif program in commands.SHORT:
        check_bazel(folder, ["run", f"//{program}", "--", *map(filled_in, rest)])
    elif program == "torchrun":
        module = rest.index("-m") + 1
        check_flags(source_of_module(rest[module]), rest[module + 1 :])
    elif program in ("python", "python3") and rest[0] == "-m" and rest[1].startswith("finecut."):
        check_flags(source_of_module(rest[1]), rest[2:])
    else:
        pytest.fail(f"{COMMANDS[text]}\nno way to check it; add one to {Path(__file__).name}")


def filled_in(word: str) -> str:
    """A word of a table's command: [optional] ones are given, and capitals stand for something of the desk."""
    word = word.strip("[]")
    for placeholder, meant in PLACEHOLDERS.items():
        word = re.sub(rf"\b{placeholder}\b", meant, word)
    return word


def check_bazel(folder: Path, words: list[str]) -> None:
    """Labels must exist; a program that changes nothing is run, of others the flags must exist."""
    verb, *rest = words
    split = rest.index("--") if "--" in rest else len(rest)
    labels = [word for word in rest[:split] if not word.startswith("-")]
    given = rest[split + 1 :]
    assert verb in ("run", "test", "build") and labels
    if verb != "run":
        assert all(exists(label) for label in labels), f"no such target among {labels}"
        return
    (label,) = labels
    if label in ("//launcher", "//launcher:launcher"):
        run_launcher(folder, given)
    elif label in RUN:
        if "issue" in given and not (folder / "authority").exists():
            execute(folder, RUN[label], ["create", f"--authority={folder}/authority"])
        execute(folder, RUN[label], [word.replace("$HOME", str(folder)) for word in given])
    elif label == "//dataprep" and "--dry_run" not in given and "lint" not in given:
        validate(folder, given)
        check_flags(source_of_label(label), given)
    else:
        check_flags(source_of_label(label), given)


def run_launcher(folder: Path, given: list[str]) -> None:
    """Verbs that only look are run as they stand, those that work are replaced by one that looks."""
    verb, rest = ("run", given) if not given or given[0].startswith("-") else (given[0], given[1:])
    check_flags(source_of_label("//launcher"), rest)
    if verb in HARMLESS:
        execute(folder, "finecut.launcher.main", [verb, *rest])
    elif verb in IN_PLACE_OF:
        execute(folder, "finecut.launcher.main", [IN_PLACE_OF[verb], *rest])
    else:  # the service's: its own tests start it
        assert verb in ("serve", "submit"), f"the launcher has no verb {verb}"


def validate(folder: Path, given: list[str]) -> None:
    config = next((word.partition("=")[2] for word in given if word.startswith("--config=")), None)
    if config:
        execute(folder, "finecut.launcher.main", ["validate", f"--config={config}"])


def execute(folder: Path, module: str, given: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *given],
        env=environment(BUILD_WORKING_DIRECTORY=str(folder)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{' '.join(given)}\n{done.stdout}\n{done.stderr}"


def check_flags(source: Path, given: list[str]) -> None:
    """Each flag is one that the program's main file defines, with absl or with argparse."""
    text = source.read_text(encoding="utf-8")
    defined = set(re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", text))
    defined |= {name.replace("-", "_") for name in re.findall(r"add_argument\(\s*\"--([\w-]+)\"", text)}
    for word in given:
        if word.startswith("--") and word != "--":
            name = word[2:].partition("=")[0].replace("-", "_")
            known = name in defined or name.removeprefix("no") in defined or name in ("help", "helpfull", "v")
            assert known, f"{source.relative_to(ROOT)} has no flag --{name}; it has {sorted(defined)}"


def exists(label: str) -> bool:
    if label.endswith("..."):
        return (ROOT / label.removeprefix("//").removesuffix("...")).is_dir()
    return target(label) is not None


def target(label: str) -> ast.Call | None:
    """A target's rule in its BUILD file."""
    package, _, name = label.removeprefix("//").partition(":")
    name = name or package.rpartition("/")[2]
    build = ROOT / package / "BUILD"
    for node in ast.walk(ast.parse(build.read_text(encoding="utf-8"))) if build.is_file() else ():
        if isinstance(node, ast.Call) and field(node, "name") == name:
            return node
    return None


def field(call: ast.Call, name: str) -> object:
    """A literal argument of a rule; None where it has none."""
    found = next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
    try:
        return ast.literal_eval(found) if found is not None else None
    except ValueError:  # a glob or a call
        return None


def source_of_label(label: str) -> Path:
    """The main file of a program; aliases are followed."""
    call = target(label)
    assert call is not None, f"there is no target {label}"
    if actual := field(call, "actual"):
        return source_of_label(str(actual))
    package = label.removeprefix("//").partition(":")[0]
    sources = field(call, "srcs")
    assert isinstance(sources, list), f"{label} is not a program"
    return ROOT / package / str(field(call, "main") or sources[0])


def source_of_module(module: str) -> Path:
    path = ROOT / (module.removeprefix("finecut.").replace(".", "/") + ".py")
    assert path.is_file(), f"there is no module {module}"
    return path


@pytest.mark.parametrize("found", JOBS, ids=str)
def test_job(folder: Path, found: Found) -> None:
    """A block with a name is a whole job, and valid; others are parts of one, and have its form."""
    message = re.search(r"^# proto-message: finecut\.v1\.(\w+)", found.text, re.MULTILINE)
    if message and message[1] != "JobConfig":
        pytest.skip("a message of another kind than a job; the tests of what reads it hold it")
    if found not in WHOLE_JOBS:
        desk.job_of(found.text)
        return
    path = folder / f"{desk.job_of(found.text).name}.textproto"
    assert path.read_text() == found.text, f"{found.page}: two jobs have one name; each is a file of its own"
    load_job(path, storage_root=str(folder / "elsewhere"))


@pytest.mark.parametrize("found", PARTS, ids=str)
def test_part_of_a_job(found: Found) -> None:
    assert desk.is_part_of_a_job(textwrap.dedent(found.text)), f"{found}\nthere are no such fields together"


def test_links_lead_to_files() -> None:
    broken = [found for found in all_found(commands.links) if not (ROOT / found.page.parent / found.text).exists()]
    assert not broken, "\n".join(map(str, broken))


def test_failures_of_the_operations_guide_are_in_the_programs_words() -> None:
    """Each message in a left column is one that some program writes; capitals stand for what differs."""
    code = "".join(
        path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py") if not path.name.endswith("_test.py")
    )
    said = re.sub(r"\{[^{}\n]*\}", "{}", re.sub(r'"\s*\n\s*f?"', "", code))  # texts in several pieces become one
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").partition("## When something fails")[2]
    cells = [row.split("|")[1] for row in text.partition("\nTracebacks")[0].splitlines() if row.startswith("| `")]
    phrases = [phrase for cell in cells for phrase in re.findall(r"`([^`]+)`", cell)]
    parts = {part for phrase in phrases for part in re.split(r"\$?\b[A-Z]+\b'?", phrase) if len(part.strip(" '(")) > 2}
    assert len(phrases) > 25
    unknown = [part for part in parts if part.strip(" '(") not in said]
    assert not unknown, unknown


def test_an_unknown_flag_target_or_program_is_found(folder: Path) -> None:
    for words in (
        ["run", "//launcher", "--", "plan", "--config=job.textproto", "--tempo=3"],
        ["run", "//launcher", "--", "dance"],
        ["run", "//launcher", "--", "plan", "--config=missing.textproto"],
        ["run", "//tools:dash"],
        ["test", "//nowhere/..."],
    ):
        with pytest.raises(AssertionError):
            check_bazel(folder, words)
    with pytest.raises(UserError):
        desk.job_of('name: "x" stages { sfd {} }')
    assert not desk.is_part_of_a_job("training { max_stops: 3 }")


def test_commands_are_found_wherever_they_stand() -> None:
    text = os.linesep.join(
        [
            "Run `bazel run //a -- --b` or `bazel\nrun //c`; `bazelw` is a mention, `bazel run` too.",
            "",
            "    ./bazelw test //... # all",
            "",
            "```sh",
            "$ X=1 torchrun -m finecut.a \\",
            "  --b",
            "```",
            "```text",
            "bazel run //not/a/command",
            "```",
        ]
    )
    found = [each.text for each in commands.commands(Path("page.md"), text)]
    assert found == [
        "./bazelw test //... # all",
        "X=1 torchrun -m finecut.a  --b",
        "bazel run //a -- --b",
        "bazel run //c",
    ]
