"""What a run records: throughput, memory, TensorBoard and the event log. For the recipes."""
