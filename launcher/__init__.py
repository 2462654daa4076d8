"""The command line: reads a job, plans it, runs it durably and shows progress. Nothing imports this package."""
