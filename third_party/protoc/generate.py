"""Runs protoc of grpcio-tools and moves what it makes to where the build expects it.

Usage: generate.py VIRTUAL_PREFIX OUTPUT_FOLDER PROTO...

A proto at `proto/job.proto` is compiled as `VIRTUAL_PREFIX/proto/job.proto`, so that it imports its neighbours, and is
imported in Python, under the workspace's name.
"""

import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc


def main(arguments: list[str]) -> int:
    prefix, output, *protos = arguments
    folders = sorted({Path(proto).parent for proto in protos})
    well_known = resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        command = ["protoc", *(f"-I{prefix}/{folder}={folder}" for folder in folders), f"-I{well_known}"]
        command += [f"--python_out={scratch}", f"--pyi_out={scratch}", f"--grpc_python_out={scratch}"]
        status: int = protoc.main([*command, *(f"{prefix}/{proto}" for proto in protos)])
        for made in sorted(Path(scratch, prefix).rglob("*.py*")):
            target = Path(output) / made.relative_to(Path(scratch, prefix))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made, target)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
