"""A real browser for tests of the pages that Finecut makes. Tests of any folder may use it; nothing else does."""
