"""Examples of prepared data by their ids: where each document stands and what it says.

Documents that are equal, pieces of one that was split, and the two of a preference pair share an id.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from finecut.dataprep import tokenization
from finecut.dataprep.document_blocks import open_blocks
from finecut.dataprep.documents import parse_example_id
from finecut.dataprep.lint.findings import decode
from finecut.dataprep.shards import Blocks
from finecut.proto.run import artifacts

# Blocks read together.
_BATCH = 64


def find(folder: Path, example: str) -> Iterator[str]:
    """One text for each document of this example; what is trained stands in ⟦ ⟧.

    Raises UserError where the folder or the id is none.
    """
    number = parse_example_id(example)
    manifest = artifacts.read(folder)
    tokenizer = tokenization.load(folder / tokenization.FOLDER, needs_template=False)
    for split in manifest.data.splits:
        reader = open_blocks(folder, split.name, manifest)
        for first in range(0, len(reader), _BATCH):
            blocks = reader.read(range(first, min(first + _BATCH, len(reader))))
            for n, document in np.argwhere(blocks.example_id_ND == number).tolist():
                yield f"{split.name} block {first + n:,}, document {document}:\n{_text(blocks, n, document, tokenizer)}"


def _text(blocks: Blocks, block: int, document: int, tokenizer: PreTrainedTokenizerBase) -> str:
    inside_L = blocks.document_id_NL[block] == document
    ids_T, mask_T = blocks.input_ids_NL[block][inside_L], blocks.loss_mask_NL[block][inside_L]
    borders = [0, *(np.flatnonzero(np.diff(mask_T)) + 1).tolist(), len(ids_T)]
    texts = []
    for start, end in pairwise(borders):
        text = decode(ids_T[start:end], tokenizer)
        texts.append(f"⟦{text}⟧" if mask_T[start] else text)
    return "".join(texts)
