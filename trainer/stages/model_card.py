"""README.md of an exported model: what it is, what it was made from, and what was proved of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from finecut.proto import artifact_pb2


def write(
    folder: Path,
    artifact: artifact_pb2.Artifact,
    trained: artifact_pb2.Artifact,
    base_models: Sequence[str],
    checks: Mapping[str, str],
) -> None:
    """Writes the card.

    Args:
      artifact: of the export.
      trained: of the stage that trained the model; empty where the model is from elsewhere.
      base_models: names of the models that it was trained from.
      checks: what was proved, by what proved it.
    """
    kind = "An adapter" if artifact.model.adapter else "A model"
    header = {
        "base_model": list(base_models),
        "library_name": "peft" if artifact.model.adapter else "transformers",
        "tags": ["finecut"],
    }
    origin = f", trained by its stage `{trained.stage}`" if trained.stage else ""
    sections = [
        f"---\n{yaml.safe_dump(header, sort_keys=True)}---\n",
        f"# {artifact.job}\n\n{kind} of the job `{artifact.job}`{origin}.\n",
        _table("Provenance", _provenance(artifact, trained)),
        _table("Measured in training", {name: f"{value:.6g}" for name, value in sorted(trained.model.metrics.items())}),
        _table("Checked before it was written", checks),
        _samples(artifact.model.samples),
    ]
    (folder / "README.md").write_text("\n".join(filter(None, sections)), encoding="utf-8")


def _provenance(artifact: artifact_pb2.Artifact, trained: artifact_pb2.Artifact) -> dict[str, str]:
    made_from = {
        "Optimizer steps": f"{trained.model.steps:,}" if trained.model.steps else "",
        "Settings (SHA-256)": artifact.fingerprints.config,
        "Tokenizer and chat template (SHA-256)": artifact.fingerprints.tokenizer,
        "Training data (SHA-256)": trained.fingerprints.data,
        "Code that trained": trained.fingerprints.code,
        "Code that exported": artifact.fingerprints.code,
    }
    return {name: value for name, value in made_from.items() if value}


def _table(title: str, rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join([f"## {title}\n", "| | |", "|---|---|", *lines, ""])


def _samples(samples: Sequence[artifact_pb2.ModelArtifact.Sample]) -> str:
    if not samples:
        return ""
    quoted = [f"> {s.prompt}\n\n{s.answer}\n".replace("\r", "") for s in samples]
    return "\n".join(["## Greedy answers\n", *quoted])
