"""Data preparation against datasets.map with TRL's masking and packing: same data, same cores, in turn.

Usage: bazel run //tools/bench:dataprep -- [--records=20000] [--median_words=300] [--repeats=3] [--block_size=8192]
           [--folder=DIR] [--only=finecut|trl]

Each side tokenizes, masks what the assistant says and packs best-fit-decreasing into blocks, in a process of its own
with as many workers as there are cores. Clocks start after imports. Finecut's time includes the start of its processes,
all checks, the report and checksums. On a machine that does other work too, compare processor time.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import app, flags

from finecut.dataprep import tokenization
from finecut.tools.bench import corpus
from finecut.tools.bench.memory import TreeUsage

_RECORDS = flags.DEFINE_integer("records", 20_000, "Conversations in the data.", lower_bound=100)
_MEDIAN_WORDS = flags.DEFINE_integer("median_words", 300, "Median length of a conversation.", lower_bound=5)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Runs of each side.", lower_bound=1)
_BLOCK_SIZE = flags.DEFINE_integer("block_size", 8192, "Tokens of a block.", lower_bound=16)
_FOLDER = flags.DEFINE_string("folder", None, "Keeps the data there. Unset: a temporary folder.")
_ONLY = flags.DEFINE_enum("only", None, ["finecut", "trl"], "Runs one side.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "Folder of the tokenizer. Unset: SmolLM2's, of the quickstart.")
_TRL_PYTHON = flags.DEFINE_string("trl_python", "", "Interpreter that has TRL. Unset: the one of //tools/bench's lock.")

_HERE = Path(__file__).parent
_CEILING_RECORDS = 4000

_JOB = """
name: "bench"
stages {{
  name: "prepare"
  data_prep {{
    sources {{ paths: "{data}" }}
    tokenization {{ tokenizer: "{tokenizer}" }}
    packing {{ block_size: {block_size} long_documents: TRUNCATE }}
    error_budget {{ max_truncated_fraction: 1 }}
  }}
}}
storage {{ root: "{folder}/runs" }}
"""


@dataclass(frozen=True)
class Result:
    """One run of one side; `values` is what it printed."""

    values: dict[str, Any]
    peak_bytes: int
    peak_process_bytes: int
    peak_own_bytes: int

    @property
    def rate(self) -> float:
        return float(self.values["tokens"] / self.values["seconds"])

    @property
    def processor_rate(self) -> float:
        return float(self.values["tokens"] / self.values["processor_seconds"])

    @property
    def fill(self) -> float:
        return float(self.values["tokens"] / (self.values["blocks"] * _BLOCK_SIZE.value))


def main(arguments: list[str]) -> None:
    del arguments
    folder = Path(_FOLDER.value or tempfile.mkdtemp(prefix="finecut-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{_RECORDS.value}x{_MEDIAN_WORDS.value}.jsonl"
    if not data.exists():
        print(f"writing {data}", flush=True)
        corpus.write(data, _RECORDS.value, _MEDIAN_WORDS.value)
    tokenizer = Path(_TOKENIZER.value or _HERE.parents[1] / "examples/quickstart/model")
    try:
        _compare(folder, data, tokenizer)
    finally:
        if not _FOLDER.value:
            shutil.rmtree(folder, ignore_errors=True)


def _compare(folder: Path, data: Path, tokenizer: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"{_RECORDS.value:,} records, {data.stat().st_size / 1e6:,.0f} MB, {cores} cores")
    runs: dict[str, list[Result]] = {"finecut": [], "trl": []}
    for _ in range(_REPEATS.value):
        for side, results in runs.items():
            if _ONLY.value in (None, side):
                results.append(_run(side, folder, data, tokenizer, cores))
                print(f"{side}: {results[-1].rate:,.0f} tokens/s", flush=True)
    print(f"\ntokenizers' own batch rate: {_ceiling(data, tokenizer):,.0f} tokens/s on all cores")
    for side, results in runs.items():
        if results:
            _show(side, results)
    if runs["finecut"] and runs["trl"]:
        ours, theirs = runs["finecut"], runs["trl"]
        wall = statistics.median(r.rate for r in ours) / statistics.median(r.rate for r in theirs)
        processor = statistics.median(r.processor_rate for r in ours) / statistics.median(
            r.processor_rate for r in theirs
        )
        print(f"\nFinecut is {wall:.2f} times as fast, {processor:.2f} times for each second of processor time")


def _run(side: str, folder: Path, data: Path, tokenizer: Path, cores: int) -> Result:
    scratch = folder / side
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    if side == "finecut":
        job = scratch / "job.textproto"
        job.write_text(
            _JOB.format(data=data, tokenizer=tokenizer, block_size=_BLOCK_SIZE.value, folder=scratch), encoding="utf-8"
        )
        command = [sys.executable, str(_HERE / "finecut_side.py"), str(job)]
    else:
        template = _HERE / "smollm2_marked.jinja"
        command = [_trl_python(), str(_HERE / "trl_side"), str(data), str(tokenizer), str(template), str(cores)]
        command += [str(_BLOCK_SIZE.value), str(scratch / "cache")]
    # Both sides parallelise by processes, so libraries must not by threads.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if side == "trl":
        del environment["PYTHONPATH"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        memory = TreeUsage(process.pid)
        memory.start()
        output, _ = process.communicate()
        memory.stop()
    if process.returncode:
        sys.exit(f"{side} failed with exit code {process.returncode}")
    shutil.rmtree(scratch, ignore_errors=True)
    values = json.loads(output.strip().splitlines()[-1])
    return Result(values, memory.peak_bytes, memory.peak_process_bytes, memory.peak_own_bytes)


def _trl_python() -> str:
    # Bazel lays repositories side by side.
    named = _HERE.parents[2] / "bench_deps" / "interpreter.txt"
    return _TRL_PYTHON.value or named.read_text(encoding="utf-8").strip()


def _ceiling(data: Path, folder: Path) -> float:
    """What the tokenizers library gives for rendered texts, with a thread for each core and nothing around it."""
    tokenizer = tokenization.load(folder)
    with data.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line, _ in zip(file, range(_CEILING_RECORDS), strict=False)]
    texts = [str(tokenizer.apply_chat_template(line["messages"], tokenize=False)) for line in lines]
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        rates.append(sum(len(item.ids) for item in encoded) / (time.perf_counter() - started))
    return max(rates)


def _show(side: str, results: list[Result]) -> None:
    rates = sorted(result.rate for result in results)
    middle = sorted(results, key=lambda result: result.rate)[len(results) // 2]
    print(f"\n{side}: {statistics.median(rates):,.0f} tokens/s ({rates[0]:,.0f} to {rates[-1]:,.0f})")
    print(f"  tokens {middle.values['tokens']:,}, trained {middle.values['trained_tokens']:,}")
    print(f"  fill {middle.fill:.2%} of {middle.values['blocks']:,} blocks of {_BLOCK_SIZE.value:,}")
    print(f"  memory at most {max(result.peak_bytes for result in results) / 2**30:.2f} GiB in all processes,")
    print(f"    {max(result.peak_process_bytes for result in results) / 2**30:.2f} GiB in the largest,")
    print(f"    {max(result.peak_own_bytes for result in results) / 2**30:.2f} GiB in it without mapped files")
    print(f"  {middle.processor_rate:,.0f} tokens for a second of processor time")
    for part, seconds in middle.values["parts"].items():
        print(f"  {part}: {seconds:.1f} of {middle.values['seconds']:.1f} s")
    if "reading_tokens_per_second" in middle.values:
        print(f"  reading shards: {middle.values['reading_tokens_per_second']:,.0f} tokens/s in one process")


if __name__ == "__main__":
    app.run(main)
