"""AWS in tests: moto with what it leaves out, instances that are real processes, metadata that gives notice."""
