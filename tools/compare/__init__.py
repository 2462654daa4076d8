"""Two runs side by side, on the terminal and as a page. A program; nothing imports it."""
