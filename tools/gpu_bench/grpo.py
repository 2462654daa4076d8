"""Times GRPO on this host's GPUs: bare vLLM beside the recipe's rollouts, weight synchronisation, whole steps.

    bazel run //tools/gpu_bench:grpo                      # 1.7B, 64 prompts x 8 answers x 512 tokens
    python -m finecut.tools.gpu_bench.grpo --shape=0.6B --steps=3 --only=grpo # from the bundle
    python -m finecut.tools.gpu_bench.grpo --placement=SPLIT                    # two GPUs: one trains, one samples

Weights are random, so answers have their full length. Each measurement is a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from absl import app, flags

from finecut.proto.run import RunFolder
from finecut.tools.gpu_bench import models
from finecut.trainer.parallel.leaving import leave
from finecut.trainer.rl import testing
from finecut.trainer.stage import run_stage

_SHAPE = flags.DEFINE_enum("shape", "1.7B", list(models.SHAPES), "Size of the model.")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps; the first does not count.", lower_bound=2)
_PROMPTS = flags.DEFINE_integer("prompts", 64, "Prompts a step.", lower_bound=1)
_SAMPLES = flags.DEFINE_integer("samples", 8, "Answers a prompt.", lower_bound=2)
_PROMPT_TOKENS = flags.DEFINE_integer("prompt_tokens", 128, "Tokens of a prompt.", lower_bound=1)
_ANSWER_TOKENS = flags.DEFINE_integer("answer_tokens", 512, "Tokens of an answer.", lower_bound=1)
_MICRO_BLOCKS = flags.DEFINE_integer("micro_blocks", 2, "Rows of a micro-batch, of up to 8,192 tokens.", lower_bound=1)
_PLACEMENT = flags.DEFINE_enum("placement", "COLOCATED", ["COLOCATED", "SPLIT"], "Where engines are.")
_MEMORY = flags.DEFINE_float("memory", 0.4, "Share of the GPU's memory that engines take.")
_TRAINING = flags.DEFINE_string("training", "compile: true", "Further fields of TrainingConfig, in text format.")
_ONLY = flags.DEFINE_list("only", ["bare", "sync", "grpo"], "Parts to run: bare, sync, grpo.")


def main(argv: list[str]) -> int:
    """Runs the parts and prints the table."""
    del argv
    lines = [f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {_SHAPE.value} {_PLACEMENT.value}"]
    bare = 0.0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if "bare" in _ONLY.value:
            found = _bare(models.write_config(models.SHAPES[_SHAPE.value], root / "bare"))
            bare = found["tokens_per_second"]
            lines.append(f"bare vLLM        {bare:10,.0f} tokens/s   start {found['start_seconds']:.1f} s")
        if "sync" in _ONLY.value:
            for shape in dict.fromkeys([_SHAPE.value, "8B"]):
                found = _child("weight_sync", f"--shape={shape}", f"--placement={_PLACEMENT.value.lower()}")
                best = " ".join(f"{seconds:.3f}" for seconds in found["sync_seconds"])
                woken = " ".join(f"{seconds:.3f}" for seconds in found["wake_seconds"])
                lines.append(f"weight sync {shape:5} {best} s   wake {woken} s   {json.dumps(found)}")
        if "grpo" in _ONLY.value:
            lines += _grpo(root, bare)
    print("\n" + "\n".join(lines), flush=True)
    return 0


def _bare(model: Path) -> dict[str, Any]:
    sizes = (f"--prompts={_PROMPTS.value}", f"--samples={_SAMPLES.value}", f"--memory={_MEMORY.value}")
    return _child(
        "rollout",
        f"--model={model}",
        f"--prompt_tokens={_PROMPT_TOKENS.value}",
        f"--answer_tokens={_ANSWER_TOKENS.value}",
        *sizes,
    )


def _child(module: str, *arguments: str) -> dict[str, Any]:
    """The last line of JSON that the module prints, in a process of its own."""
    command = [sys.executable, "-m", f"finecut.tools.gpu_bench.{module}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not found:
        raise RuntimeError(f"{module} printed no result (exit code {done.returncode}): {done.stdout[-2000:]}")
    return dict(json.loads(found[-1]))


def _grpo(root: Path, bare: float) -> list[str]:
    """Runs the stage in this process; every number is from its event log."""
    models.write_model(models.SHAPES[_SHAPE.value], root / "model")
    testing.write_prompts(root / "data", root / "model", 4 * _PROMPTS.value, _PROMPT_TOKENS.value)
    job = testing.tiny_job(
        root,
        "grpo",
        f'group_size: {_SAMPLES.value} rewards {{ regular_expression: "e" }}',
        f"max_steps: {_STEPS.value} batch {{ micro_blocks: {_MICRO_BLOCKS.value} }}"
        f" optimizer {{ learning_rate: 1e-6 }} checkpointing {{ every_steps: 1000 }} {_TRAINING.value}",
        f"prompts_per_step: {_PROMPTS.value} max_new_tokens: {_ANSWER_TOKENS.value}"
        f" placement: {_PLACEMENT.value} gpu_memory_fraction: {_MEMORY.value}",
    )
    began = time.perf_counter()
    run_stage(job, "train")
    lines = [f"whole stage of {_STEPS.value} steps, with start and export: {time.perf_counter() - began:.1f} s"]
    steps = []
    for line in RunFolder.of(job).events("train").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if "step" in event:
            steps.append(event["step"]["values"])
        elif "message" in event:
            lines.append(event["message"])
    for name in ("step", "rollout", "score", "train", "sync"):
        values = [step[f"{name}_seconds"] for step in steps if f"{name}_seconds" in step]
        lines.append(f"{name:8} " + " ".join(f"{value:8.3f}" for value in values) + " s")
    rates = [step["sampled_tokens_per_second"] for step in steps[1:]]
    share = f"   {100 * max(rates) / bare:.1f}% of bare" if bare else ""
    lines.append("rollout  " + " ".join(f"{rate:8,.0f}" for rate in rates) + f" tokens/s{share}")
    lines.append("drift    " + " ".join(f"{step['drift']:8.5f}" for step in steps) + " nats a token")
    return lines


if __name__ == "__main__":
    app.run(lambda argv: leave(main(argv)))
