"""The linter: looks at every block of prepared data for what training would not show, and stops the job if it finds it.

It trusts nothing that data preparation claims; it sees only blocks, the tokenizer and what the stage was asked for.
"""
