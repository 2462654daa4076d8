"""Packs first-party sources and generated protos into one archive with a `finecut/` folder.

Usage: make_bundle.py OUTPUT.tar.gz FILE...

Unpacked anywhere and put on PYTHONPATH, `python -m finecut.trainer.main` works with any interpreter that has the
packages of the lock. Equal inputs give equal bytes.
"""

import gzip
import io
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

PACKAGES = {"proto", "dataprep", "trainer", "launcher", "tools"}
# Modules, and the templates that they read.
SUFFIXES = {".py", ".jinja"}
ROOT_INIT = b'"""Finecut."""\n'


def place(path: str) -> PurePosixPath | None:
    """Where a file of the build goes in the archive; None for what stays out (tests, BUILD files, checks)."""
    parts = PurePosixPath(path).parts
    if parts[0] == "bazel-out":
        parts = parts[3:]  # bazel-out/<configuration>/bin
    if len(parts) < 2 or parts[0] not in PACKAGES:
        return None
    if PurePosixPath(path).suffix not in SUFFIXES or path.endswith("_test.py"):
        return None
    return PurePosixPath("finecut", *parts)


def make(files: Iterable[str]) -> bytes:
    """The archive's bytes."""
    content = {PurePosixPath("finecut/__init__.py"): ROOT_INIT}
    content |= {target: Path(file).read_bytes() for file in files if (target := place(file))}
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for target in sorted(content):
            member = tarfile.TarInfo(str(target))
            member.size = len(content[target])
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(content[target]))
    return gzip.compress(raw.getvalue(), mtime=0)


def main() -> None:
    output, *files = sys.argv[1:]
    Path(output).write_bytes(make(files))


if __name__ == "__main__":
    main()
