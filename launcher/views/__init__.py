"""What people look at: a run's history, drawn as a page or on a terminal. The launcher and tools/ use it."""
