"""The report: well-formed, honest about every token, and harmless whatever the data says."""

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from finecut.dataprep import tokenization
from finecut.dataprep.conversations import Conversation, Message
from finecut.dataprep.documents import Document
from finecut.dataprep.lint.layout import Layout
from finecut.dataprep.masking import Masker
from finecut.dataprep.records import BadRecord
from finecut.dataprep.report.page import write_report
from finecut.dataprep.report.samples import pieces_of, texts_of
from finecut.dataprep.report.statistics import SplitCounts, Statistics, histograms
from finecut.dataprep.shards import ShardWriter, SplitReader
from finecut.dataprep.testing import write_tiny_tokenizer
from finecut.proto import artifact_pb2

BLOCK_SIZE = 128
VOID = {"meta", "wbr", "br"}
EVIL = "<script>alert('x')</script> & \"more\""


class Page(HTMLParser):
    """Checks that tags are balanced; counts them, and collects titles and text of tokens."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.tokens: list[tuple[str, str]] = []  # tag and title
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        title = dict(attrs).get("title")
        if tag in ("mark", "span") and title:
            self.tokens.append((tag, title))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}>"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return tokenization.load(write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def documents_of(tokenizer: PreTrainedTokenizerBase, *answers: str) -> list[Document]:
    chats = [Conversation("s", "p", (Message("user", f"{EVIL} 東"), Message("assistant", text))) for text in answers]
    found = Masker(tokenizer).documents(chats)
    assert not any(isinstance(result, BadRecord) for result in found), found
    return [document for result in found if not isinstance(result, BadRecord) for document in result]


def report_on(folder: Path, tokenizer: PreTrainedTokenizerBase, documents: list[Document]) -> str:
    """The page for one split, one block a document."""
    writer = ShardWriter(folder, "train", BLOCK_SIZE, 0, 1 << 20)
    for document in documents:
        writer.add([document])
    manifest = artifact_pb2.Artifact(job=EVIL, stage="prepare")
    manifest.data.block_size, manifest.data.vocabulary_size = BLOCK_SIZE, len(tokenizer)
    manifest.data.splits.append(writer.close())
    manifest.data.sources.add(name=f"{EVIL}.jsonl", record_count=1234, bad_record_count=5)
    reader = SplitReader(folder, "train", manifest=manifest)
    statistics = Statistics(BLOCK_SIZE)
    statistics.add("train", Layout.of(reader.read(range(len(reader)))))
    write_report(folder / "report.html", manifest, statistics, {"train": reader}, tokenizer)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_token_is_shown_and_marked_as_it_is_trained(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    documents = documents_of(tokenizer, "Paris, a city.", "Zürich 🙂 and\n\tmore")
    page = Page(report_on(tmp_path, tokenizer, documents))
    expected = [
        ("mark" if trained else "span", f"token {token}, position {n}, {'trained' if trained else 'not trained'}")
        for document in documents
        for n, (token, trained) in enumerate(zip(document.input_ids_T, document.loss_mask_T, strict=True))
    ]
    assert page.tokens == expected
    assert "Zürich" in page.text.replace("▯", "") and "🙂" in page.text
    for document in documents:
        assert f"{len(document)} tokens, {document.loss_mask_T.sum()} trained" in page.text


def test_text_of_the_data_never_becomes_markup(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    html = report_on(tmp_path, tokenizer, documents_of(tokenizer, EVIL))
    page = Page(html)
    assert page.tags["script"] == 0 and "<script" not in html
    assert not any(name.startswith("on") for name in page.attributes)
    assert f"Job {EVIL}" in page.text


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    html = report_on(tmp_path, tokenizer, documents_of(tokenizer, "Fine."))
    page = Page(html)
    assert not {"src", "href", "srcset", "xlink:href"} & page.attributes
    assert not re.search(r"@import|url\(|https?://", html)
    assert "prefers-color-scheme: dark" in html


def test_numbers_of_splits_and_sources_stand_in_tables(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    documents = documents_of(tokenizer, "One.", "Two.", "Three.")
    page = Page(report_on(tmp_path, tokenizer, documents))
    assert "1,234" in page.text and f"{EVIL}.jsonl" in page.text
    tokens = sum(map(len, documents))
    trained = sum(int(document.loss_mask_T.sum()) for document in documents)
    for number in (f"{tokens:,}", f"{trained / tokens:.1%}", f"{tokens / (3 * BLOCK_SIZE):.2%}"):
        assert number in page.text
    assert page.tags["svg"] == 3 and page.tags["rect"] == 3 * 20 - (20 - len(histograms_of(documents)[0].bars))


def histograms_of(documents: list[Document]) -> list:
    counts = SplitCounts(BLOCK_SIZE)
    counts.documents_by_length += np.bincount([len(d) for d in documents], minlength=BLOCK_SIZE + 1)
    return histograms(counts)


def test_equal_data_gives_an_equal_page(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    documents = documents_of(tokenizer, "One.", "Two.")
    assert report_on(tmp_path / "a", tokenizer, documents) == report_on(tmp_path / "b", tokenizer, documents)


def test_long_blocks_are_cut_with_what_is_left_out(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    writer = ShardWriter(tmp_path, "train", 1024, 0, 1 << 20)
    mask_T = np.arange(300) >= 150
    writer.add([Document(np.full(300, 40, np.int32), mask_T) for _ in range(3)])
    manifest = artifact_pb2.Artifact()
    manifest.data.block_size = 1024
    manifest.data.splits.append(writer.close())
    reader = SplitReader(tmp_path, "train", manifest=manifest)
    statistics = Statistics(1024)
    statistics.add("train", Layout.of(reader.read([0])))
    write_report(tmp_path / "report.html", manifest, statistics, {"train": reader}, tokenizer)
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.tokens) == 400
    assert "200 more tokens of this document" in page.text
    assert "1 more documents, then 124 tokens of padding" in page.text


def test_token_texts_together_are_the_text(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "Two  blanks, a\ttab,\n東京 and 🙂."
    texts = texts_of(tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer)
    assert "".join(texts).replace("▯", "") == text


def test_white_space_is_visible() -> None:
    assert [(piece.text, piece.is_space) for piece in pieces_of(" a\n")] == [("·", True), ("a", False), ("⏎\n", True)]
    assert [piece.text for piece in pieces_of("")] == ["▯"]


def test_statistics_count_documents_and_blocks() -> None:
    counts = SplitCounts(10)
    counts.documents_by_length[[2, 4, 8]] = [5, 4, 1]
    counts.blocks_by_tokens[[10, 5]] = [3, 1]
    assert [counts.length_at(share) for share in (0.5, 0.9, 0.95, 1)] == [2, 4, 8, 8]
    lengths, _, fill = histograms(counts)
    assert [(bar.label, bar.count) for bar in lengths.bars if bar.count] == [("2", 5), ("4", 4), ("8", 1)]
    assert [(bar.label, bar.count) for bar in fill.bars if bar.count] == [("50% to 55%", 1), ("95% to 100%", 3)]
