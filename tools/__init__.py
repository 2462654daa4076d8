"""Developer and operator tools. Nothing outside tools/ and tests/ imports them, save tests that look at pages."""
