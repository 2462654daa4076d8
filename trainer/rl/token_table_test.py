"""Tables of tokens."""

import torch

from finecut.trainer.rl import token_table


def test_every_token_has_its_numbers_and_what_would_break_the_table_is_escaped() -> None:
    found = token_table.table(["so", "|", "<b>"], {"log p": torch.tensor([-0.5, -1, -2]), "KL": torch.zeros(3)})
    assert found.splitlines() == [
        "| token | log p | KL |",
        "|---|---|---|",
        "| so | -0.5000 | 0.0000 |",
        "| &#124; | -1.0000 | 0.0000 |",
        "| &lt;b&gt; | -2.0000 | 0.0000 |",
    ]


def test_a_long_answer_is_cut() -> None:
    assert len(token_table.table(["x"] * 500, {"log p": torch.zeros(500)}).splitlines()) < 100
