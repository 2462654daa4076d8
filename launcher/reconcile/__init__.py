"""Intent and what is there, and the way from one to the other. Providers that rent machines use it."""
