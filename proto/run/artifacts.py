"""Artifacts: folders whose manifest is written last, so that a folder without one is never taken for finished."""

from pathlib import Path

from google.protobuf import json_format

from finecut.proto import artifact_pb2
from finecut.proto.config.errors import UserError
from finecut.proto.run import files

MANIFEST = "manifest.json"


class ArtifactError(UserError):
    """An artifact is missing, unfinished or damaged."""


def write(folder: Path, artifact: artifact_pb2.Artifact) -> artifact_pb2.Artifact:
    """Hashes every file below `folder`, makes them durable, then writes the manifest.

    Returns:
      The artifact as written, with `files` and `finished_at` filled in.
    """
    artifact = artifact_pb2.Artifact.FromString(artifact.SerializeToString())
    del artifact.files[:]
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST):
        files.sync_file(path)
        artifact.files.add(
            path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=files.sha256_of_file(path)
        )
    for child in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        files.sync_folder(child)
    artifact.finished_at.GetCurrentTime()
    files.write_atomically(folder / MANIFEST, json_format.MessageToJson(artifact, preserving_proto_field_name=True))
    return artifact


def read(folder: Path, verify: bool = False) -> artifact_pb2.Artifact:
    """Reads a manifest and checks that its files are there with their sizes; with `verify`, their SHA-256 too.

    Raises:
      ArtifactError: No manifest, an unreadable one, or files that do not match it.
    """
    manifest = folder / MANIFEST
    try:
        text = manifest.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} holds no finished artifact: {MANIFEST} is missing; run its stage first"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{manifest} cannot be read: {error.strerror}") from error
    try:
        artifact = json_format.Parse(text, artifact_pb2.Artifact())
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{manifest} is damaged: {error}; delete {folder} and run its stage again") from error
    damage = [d for file in artifact.files if (d := _damage(folder, file, verify))]
    if damage:
        raise ArtifactError(f"{folder} is damaged: {'; '.join(damage)}; delete it and run its stage again")
    return artifact


def _damage(folder: Path, file: artifact_pb2.ArtifactFile, verify: bool) -> str | None:
    """What is wrong with one file, in words."""
    path = folder / file.path
    if not path.is_file():
        return f"{file.path} is missing"
    if (size := path.stat().st_size) != file.bytes:
        return f"{file.path} has {size:,} bytes instead of {file.bytes:,}"
    if verify and files.sha256_of_file(path) != file.sha256:
        return f"{file.path} has another content than when it was written"
    return None
