"""For tests of masks: what is trained, as text."""

from transformers import PreTrainedTokenizerBase

from finecut.dataprep.conversations import Conversation
from finecut.dataprep.documents import Document
from finecut.dataprep.masking import Masker
from finecut.dataprep.records import BadRecord


def document_of(masker: Masker, conversation: Conversation) -> Document:
    """The only document of a conversation that must not be refused."""
    (document,) = documents_of(masker, conversation)
    return document


def documents_of(masker: Masker, conversation: Conversation) -> tuple[Document, ...]:
    """All documents of a conversation that must not be refused."""
    (result,) = masker.documents([conversation])
    assert not isinstance(result, BadRecord), result
    return result


def trained_texts(tokenizer: PreTrainedTokenizerBase, document: Document) -> list[str]:
    """Decoded runs of trained tokens."""
    runs: list[list[int]] = []
    for position, trained in enumerate(document.loss_mask_T):
        if trained and not document.loss_mask_T[position - 1]:
            runs.append([])
        if trained:
            runs[-1].append(int(document.input_ids_T[position]))
    return [tokenizer.decode(run) for run in runs]
