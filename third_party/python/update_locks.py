"""Resolves requirements_*.in into hash-locked requirements_*.lock: `bazel run //third_party/python:update_locks`.

Each lock starts with the digest of what it was made from; `locks_test` compares it.
"""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

ACCELERATORS = ("cpu", "cuda")
BENCH = "bench"  # what //tools/bench compares with; its lock stands there
PYTHON_VERSION = "3.11"
PLATFORM = "x86_64-manylinux_2_35"
HEADER = "# Made by `bazel run //third_party/python:update_locks` from inputs with digest "


def inputs(folder: Path, accelerator: str) -> list[Path]:
    """The files that a lock is made from."""
    return [
        folder / "requirements.in",
        folder / f"requirements_{accelerator}.in",
        folder / f"requirements_{accelerator}.overrides",
    ]


def digest(folder: Path, accelerator: str) -> str:
    """SHA-256 of what a lock is made from."""
    return digest_of(inputs(folder, accelerator))


def digest_of(paths: list[Path]) -> str:
    """SHA-256 of requirements; comments and blank lines do not count."""
    lines = [line.split("#")[0].strip() for path in paths for line in path.read_text().splitlines()]
    return hashlib.sha256("\n".join(filter(None, lines)).encode()).hexdigest()


def find_links() -> list[str]:
    """Folders of wheels that pip is configured with; uv does not read pip's configuration."""
    answer = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    places = re.findall(r"find-links='([^']*)'", answer.stdout)
    return [part for place in places for part in place.split()] + os.environ.get("PIP_FIND_LINKS", "").split()


def update(folder: Path, accelerator: str) -> None:
    """Writes one lock."""
    _compile(
        folder,
        inputs(folder, accelerator)[1].name,
        f"requirements_{accelerator}.lock",
        digest(folder, accelerator),
        ["--override", inputs(folder, accelerator)[2].name],
        for_cpu=accelerator == "cpu",
    )


def update_bench(workspace: Path) -> None:
    """Writes the benchmarks' lock, with the versions of requirements_cpu.lock for packages that stand in both."""
    folder = workspace / "tools" / "bench"
    # Relative, because uv writes it into the lock as it is given.
    constraint = os.path.relpath(workspace / "third_party" / "python" / "requirements_cpu.lock", folder)
    _compile(
        folder,
        "requirements.in",
        "requirements.lock",
        digest_of([folder / "requirements.in"]),
        ["--constraint", constraint],
        for_cpu=True,
    )


def _compile(folder: Path, source: str, lock: str, made_from: str, options: list[str], for_cpu: bool) -> None:
    """Runs uv. torch's CPU build comes from a configured folder of wheels, else from PyTorch's own index."""
    # Such folders are there for torch's CPU build, which would also satisfy the CUDA lock's torch.
    links = sorted(set(find_links())) if for_cpu else []
    has_torch = any(Path(link).is_dir() and list(Path(link).glob("torch-*+cpu*")) for link in links)
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", source, "--output-file", lock, *options]
    command += ["--python-version", PYTHON_VERSION, "--python-platform", PLATFORM, "--generate-hashes", "--no-header"]
    command += ["--no-emit-find-links", "--no-emit-index-url", "--quiet", "--upgrade"]
    for link in links:
        command += ["--find-links", link]
    if for_cpu and not has_torch:
        command += ["--torch-backend", "cpu"]
    subprocess.run(command, cwd=folder, check=True)
    written = folder / lock
    written.write_text(f"{HEADER}{made_from}\n{written.read_text()}")


def main() -> None:
    workspace = os.environ.get("BUILD_WORKSPACE_DIRECTORY")
    if not workspace:
        sys.exit("run it with: bazel run //third_party/python:update_locks")
    folder = Path(workspace) / "third_party" / "python"
    for name in sys.argv[1:] or (*ACCELERATORS, BENCH):
        print(f"resolving the lock {name}", flush=True)
        if name == BENCH:
            update_bench(Path(workspace))
        else:
            update(folder, name)


if __name__ == "__main__":
    main()
