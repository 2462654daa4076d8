"""What makes a checkpoint folder whole: a manifest with the SHA-256 of every file, written last.

A folder without a manifest, or whose files do not match it, is torn; it is passed over for the one before.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from finecut.proto.run import files

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")


def folder_of(root: Path, step: int) -> Path:
    """Folder of the checkpoint after `step`."""
    return root / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint folder."""
    match = _NAME.fullmatch(folder.name)
    assert match, f"{folder} is not a checkpoint folder"
    return int(match[1])


def hashes(folder: Path, share: int = 0, num_shares: int = 1) -> dict[str, str]:
    """SHA-256 by relative path of every `num_shares`-th file, so that ranks can split the work."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): files.sha256_of_file(path) for path in paths[share::num_shares]}


def finish(folder: Path, sha256_by_path: dict[str, str]) -> None:
    """Makes the files durable and writes the manifest: from here on the checkpoint counts."""
    for path in sha256_by_path:
        files.sync_file(folder / path)
    for child in {(folder / path).parent for path in sha256_by_path}:
        files.sync_folder(child)
    text = json.dumps({"step": step_of(folder), "sha256": sha256_by_path}, indent=1, sort_keys=True)
    files.write_atomically(folder / MANIFEST, text)
    files.sync_folder(folder.parent)


def damage(folder: Path) -> str | None:
    """Why the checkpoint must not be used, in words; None when it is whole."""
    try:
        recorded = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
    except FileNotFoundError:
        return "it was not finished"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    missing = [path for path in recorded if not (folder / path).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    changed = [path for path, sha256 in recorded.items() if files.sha256_of_file(folder / path) != sha256]
    return f"{changed[0]} is damaged" if changed else None


def candidates(root: Path) -> list[Path]:
    """Checkpoint folders, whole or not, newest first."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if _NAME.fullmatch(path.name)), key=step_of, reverse=True)


def newest_whole(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that can be used, and a sentence for each newer one that cannot."""
    passed_over: list[str] = []
    for folder in candidates(root):
        reason = damage(folder)
        if reason is None:
            return folder, passed_over
        passed_over.append(f"checkpoint {folder.name} is passed over: {reason}")
    return None, passed_over


def prune(root: Path, keep_last: int, keep_every_steps: int | None) -> None:
    """Deletes finished checkpoints beyond the newest `keep_last`, save multiples of `keep_every_steps`."""
    finished = [folder for folder in candidates(root) if (folder / MANIFEST).is_file()]
    for folder in finished[keep_last:]:
        if keep_every_steps is None or step_of(folder) % keep_every_steps:
            (folder / MANIFEST).unlink()  # first, so that a half-deleted folder is known to be torn
            shutil.rmtree(folder)
