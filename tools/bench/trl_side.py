"""Prepares data as TRL does, for dataprep_bench.py: runs in TRL's environment and imports nothing of Finecut.

Usage: trl_side.py DATA.jsonl TOKENIZER_FOLDER CHAT_TEMPLATE_FILE NUM_PROCESSES BLOCK_SIZE CACHE_FOLDER
Prints one line of JSON.
"""

import json
import os
import sys
import time
from types import SimpleNamespace

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import datasets
import pyarrow.compute as pc
import trl
from transformers import AutoTokenizer


def main(data: str, tokenizer_folder: str, template_file: str, processes: str, block_size: str, cache: str) -> None:
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    with open(template_file, encoding="utf-8") as file:
        template = file.read()
    # The trainer's own method, with just what it reads of the trainer and its arguments: no model is needed.
    trainer = SimpleNamespace(chat_template=template, _tokenizer=tokenizer, completion_only_loss=False)
    arguments = SimpleNamespace(
        dataset_num_proc=int(processes),
        dataset_text_field="text",
        assistant_only_loss=True,
        max_length=int(block_size),
        packing_strategy="bfd",
        shuffle_dataset=False,
    )
    started = time.perf_counter()
    dataset = datasets.load_dataset("json", data_files=data, split="train", cache_dir=cache)
    loaded = time.perf_counter()
    packed = trl.SFTTrainer._prepare_dataset(trainer, dataset, tokenizer, arguments, True, None, "train")
    seconds = time.perf_counter() - started
    tokens = pc.sum(pc.list_value_length(packed.data.column("input_ids"))).as_py()
    trained = sum(pc.sum(pc.not_equal(part.flatten(), -100)).as_py() for part in packed.data.column("labels").chunks)
    result = {
        "seconds": seconds,
        "tokens": tokens,
        "trained_tokens": trained,
        "blocks": len(packed),
        "parts": {"load_dataset": loaded - started, "tokenize, mask, pack": seconds - (loaded - started)},
        "versions": f"trl {trl.__version__}, datasets {datasets.__version__}",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
