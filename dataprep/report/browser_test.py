"""The report in a browser: what a reader sees is what the masks say, in both colour schemes and on a phone."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from finecut.dataprep import tokenization
from finecut.dataprep.documents import Document
from finecut.dataprep.lint.layout import Layout
from finecut.dataprep.report.page import write_report
from finecut.dataprep.report.statistics import Statistics
from finecut.dataprep.shards import ShardWriter, SplitReader
from finecut.dataprep.testing import write_tiny_tokenizer
from finecut.proto import artifact_pb2
from finecut.tools.browser.pages import browser, open_page

BLOCK_SIZE = 256
TEXTS = ("What is the capital of France?", "Paris, a city on the Seine.\n\tIt is old.", "東京 and Zürich 🙂", "x" * 90)
VIEWS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def documents(tokenizer_folder: Path) -> list[Document]:
    """Texts of which a part in the middle is trained, with special tokens at both ends."""
    tokenizer = tokenization.load(tokenizer_folder)
    found = []
    for text in TEXTS:
        ids = tokenizer(f"<|im_start|>{text}<|im_end|>", add_special_tokens=False)["input_ids"]
        found.append(Document(np.array(ids, np.int32), np.arange(len(ids)) >= len(ids) // 2))
    return found


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path, documents: list[Document]) -> str:
    """Address of a report on one block with all documents in it."""
    folder = tmp_path_factory.mktemp("report")
    writer = ShardWriter(folder, "train", BLOCK_SIZE, 0, 1 << 20)
    writer.add(documents)
    manifest = artifact_pb2.Artifact(job="chats", stage="prepare")
    manifest.data.block_size, manifest.data.vocabulary_size = BLOCK_SIZE, 512
    manifest.data.splits.append(writer.close())
    manifest.data.sources.add(name="a-long-name-of-a-file-of-conversations.jsonl", record_count=4)
    reader = SplitReader(folder, "train", manifest=manifest)
    statistics = Statistics(BLOCK_SIZE)
    statistics.add("train", Layout.of(reader.read([0])))
    path = folder / "report.html"
    write_report(path, manifest, statistics, {"train": reader}, tokenization.load(tokenizer_folder))
    return path.as_uri()


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_the_page_is_whole_and_legible(report: str, chromium: Browser, width: int, scheme: str) -> None:
    found = open_page(chromium, report, width=width, scheme=scheme)
    assert found.complaints == []
    assert found.overflow() == 0
    found.page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert found.overflow() == 0
    assert found.illegible() == []


def test_plots_are_drawn(report: str, chromium: Browser) -> None:
    page = open_page(chromium, report).page
    plots = page.locator("svg")
    assert plots.count() == 3
    for plot in plots.all():
        box = plot.bounding_box()
        assert box and box["width"] > 200 and box["height"] > 80
        bars = [bar.bounding_box() for bar in plot.locator("rect").all()]
        # A bar of nothing has no height; the highest takes most of the plot.
        assert max(bar["height"] for bar in bars if bar) > box["height"] / 2
        fill = plot.locator("rect").first.evaluate("bar => getComputedStyle(bar).fill")
        assert fill != plot.evaluate("plot => getComputedStyle(plot.closest('figure')).backgroundColor")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_are_coloured_as_they_are_trained(
    report: str, chromium: Browser, documents: list[Document], scheme: str
) -> None:
    page = open_page(chromium, report, scheme=scheme).page
    colours = page.locator(".tokens > span, .tokens > mark").evaluate_all(
        "tokens => tokens.map((token) => getComputedStyle(token).backgroundColor)"
    )
    trained = np.concatenate([document.loss_mask_T for document in documents]).tolist()
    of_trained = {colour for colour, is_trained in zip(colours, trained, strict=True) if is_trained}
    of_others = {colour for colour, is_trained in zip(colours, trained, strict=True) if not is_trained}
    assert len(of_trained) == len(of_others) == 1
    assert of_trained != of_others == {"rgba(0, 0, 0, 0)"}


def test_each_document_stands_in_a_frame_of_its_own(report: str, chromium: Browser, documents: list[Document]) -> None:
    frames = open_page(chromium, report).page.locator(".document")
    boxes = [frame.bounding_box() for frame in frames.all()]
    assert len(boxes) == len(documents)
    assert all(frame.evaluate("frame => parseFloat(getComputedStyle(frame).borderLeftWidth)") for frame in frames.all())
    for above, below in pairwise(boxes):
        assert above and below and above["y"] + above["height"] < below["y"]


def test_a_token_tells_its_id_and_place(report: str, chromium: Browser, documents: list[Document]) -> None:
    last = open_page(chromium, report).page.locator(".tokens > mark").last
    token, position = documents[-1].input_ids_T[-1], len(documents[-1]) - 1
    assert last.get_attribute("title") == f"token {token}, position {position}, trained"
