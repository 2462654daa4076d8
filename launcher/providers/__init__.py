"""Where machines come from: one interface, one file a provider. Only the launcher may use it."""
