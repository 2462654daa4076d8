"""Developer and operator tools. Nothing outside tools/ and tests/ imports them."""
