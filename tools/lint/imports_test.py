"""Every import of a Python file is declared by its Bazel target, and layers point one way.

BUILD files are read as Python, which their syntax is. A target declares a module when the module's own target, or the
package's name in the registry, is among its direct deps; the standard library needs no declaration.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ["proto", "dataprep", "trainer", "launcher"]
RULES = {"py_library", "py_binary", "py_test"}
# Kernel libraries of GPU hosts, looked for when they are used: in no target's deps, so that all builds without them.
OPTIONAL = {"amp_C", "apex", "flash_attn", "liger_kernel", "triton", "trl"}


@dataclass(frozen=True)
class Target:
    """One Python rule in a BUILD file."""

    label: str
    package: str
    srcs: tuple[str, ...]
    deps: tuple[str, ...]
    is_test: bool


def build_files() -> list[Path]:
    return sorted(path for path in ROOT.rglob("BUILD") if "external" not in path.parts)


def targets() -> Iterator[Target]:
    for path in build_files():
        package = path.parent.relative_to(ROOT).as_posix().removeprefix(".")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RULES:
                yield _target(node, package, node.func.id)


def _target(call: ast.Call, package: str, rule: str) -> Target:
    fields = {keyword.arg: keyword.value for keyword in call.keywords}
    name = ast.literal_eval(fields["name"])
    srcs = tuple(_strings(fields.get("srcs"), package))
    return Target(f"//{package}:{name}", package, srcs, tuple(_strings(fields.get("deps"), package)), rule == "py_test")


def _strings(node: ast.expr | None, package: str) -> Iterator[str]:
    """Strings of a list expression: literals, requirement("x") as "@x", glob([...]) expanded."""
    if isinstance(node, ast.Constant):
        yield node.value
    elif isinstance(node, ast.List):
        for element in node.elts:
            yield from _strings(element, package)
    elif isinstance(node, ast.BinOp):
        yield from _strings(node.left, package)
        yield from _strings(node.right, package)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "requirement":
        yield "@" + ast.literal_eval(node.args[0]).lower().replace("_", "-")
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "glob":
        excluded = next((ast.literal_eval(k.value) for k in node.keywords if k.arg == "exclude"), [])
        folder = ROOT / package
        left_out = {path for pattern in excluded for path in folder.glob(pattern)}
        for pattern in ast.literal_eval(node.args[0]):
            yield from (p.relative_to(folder).as_posix() for p in sorted(folder.glob(pattern)) if p not in left_out)


def _label(dep: str, package: str) -> str:
    """The full form of a label: //a/b is //a/b:b, :x is //package:x."""
    if dep.startswith(":"):
        return f"//{package}{dep}"
    return dep if ":" in dep else f"{dep}:{dep.rsplit('/', 1)[-1]}"


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import; `from a.b import c` counts as a.b.c. Imports for types only do not run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _providers(all_targets: list[Target]) -> dict[str, set[str]]:
    """Labels that provide each first-party module; a package's __init__ comes with any of its targets."""
    providers: dict[str, set[str]] = {}
    for target in all_targets:
        dotted = ".".join(["finecut", *filter(None, target.package.split("/"))])
        for source in [*target.srcs, "__init__.py"]:
            module = f"{dotted}.{source.removesuffix('.py')}".removesuffix(".__init__")
            providers.setdefault(module, set()).add(target.label)
    for proto in (ROOT / "proto").glob("*.proto"):
        for suffix in ("_pb2", "_pb2_grpc"):
            providers[f"finecut.proto.{proto.stem}{suffix}"] = {"//proto:proto_py"}
    providers.setdefault("finecut.proto", set()).add("//proto:proto_py")
    return providers


def _module(name: str, providers: dict[str, set[str]]) -> str | None:
    """The longest module that a dotted name leads to: `from pkg import function` leads to pkg."""
    parts = name.split(".")
    return next((m for end in range(len(parts), 0, -1) if (m := ".".join(parts[:end])) in providers), None)


def _undeclared(target: Target, providers: dict[str, set[str]], distributions: dict[str, set[str]]) -> Iterator[str]:
    deps = {dep if dep.startswith("@") else _label(dep, target.package) for dep in target.deps}
    if target.is_test:
        deps.add("@pytest")
    package = ".".join(["finecut", *filter(None, target.package.split("/"))])
    for source in target.srcs:
        path = ROOT / target.package / source
        # A program whose main module is a library among its deps leaves the declarations to that library.
        is_a_deps = bool(providers.get(f"{package}.{source.removesuffix('.py')}", set()) & deps)
        if path.suffix != ".py" or not path.is_file() or is_a_deps:
            continue
        for line, name in imports(path):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names | OPTIONAL:
                continue
            if top == "finecut":
                module = _module(name, providers)
                wanted = providers.get(module or "", set())
                fine = target.label in wanted or bool(wanted & deps)
            else:
                wanted = {f"@{name}" for name in distributions.get(top, {top})}
                fine = bool(wanted & deps)
            if not fine:
                place = f"{path.relative_to(ROOT)}:{line}"
                yield f"{place}: {name} is not among the deps of {target.label}; add {_or(wanted)}"


def _or(labels: set[str]) -> str:
    names = [f'requirement("{label[1:]}")' if label.startswith("@") else label for label in sorted(labels)]
    return " or ".join(names) or "a target that has it"


def _distributions() -> dict[str, set[str]]:
    """Registry names by top-level module, such as yaml -> pyyaml."""
    names = metadata.packages_distributions()
    found = {module: {re.sub(r"[._]", "-", name.lower()) for name in owners} for module, owners in names.items()}
    # Namespace packages of several owners: the one that is meant.
    found["google"] = {"protobuf"}
    return found


@pytest.fixture(scope="module")
def known() -> tuple[list[Target], dict[str, set[str]]]:
    everything = list(targets())
    return everything, _providers(everything)


def test_finds_targets_and_sources(known: tuple[list[Target], dict[str, set[str]]]) -> None:
    everything, providers = known
    assert len(everything) > 10
    assert "finecut.proto.job_pb2" in providers


def test_every_import_is_declared(known: tuple[list[Target], dict[str, set[str]]]) -> None:
    everything, providers = known
    distributions = _distributions()
    problems = [problem for target in everything for problem in _undeclared(target, providers, distributions)]
    assert not problems, "\n" + "\n".join(dict.fromkeys(problems))


def test_an_undeclared_import_is_found(known: tuple[list[Target], dict[str, set[str]]]) -> None:
    _, providers = known
    target = Target("//tools/lint:imports_test", "tools/lint", ("imports_test.py",), (), is_test=False)
    assert any("pytest" in problem for problem in _undeclared(target, providers, _distributions()))


def test_every_python_file_belongs_to_a_target(known: tuple[list[Target], dict[str, set[str]]]) -> None:
    everything, _ = known
    owned = {ROOT / target.package / source for target in everything for source in target.srcs}
    strays = [
        path.relative_to(ROOT)
        for path in ROOT.rglob("*.py")
        if path not in owned and path.name not in ("__init__.py", "pytest_main.py") and "_pb2" not in path.name
    ]
    assert not strays, f"no target has {', '.join(map(str, strays))}"


def test_layers_point_one_way() -> None:
    """proto <- dataprep <- trainer <- launcher."""
    problems = []
    for layer, package in enumerate(LAYERS):
        for path in (ROOT / package).rglob("*.py"):
            for line, name in imports(path):
                top = name.removeprefix("finecut.").split(".")[0]
                if name.startswith("finecut.") and top in LAYERS and LAYERS.index(top) > layer:
                    problems.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not problems, "\n" + "\n".join(problems)
