"""Durable records of jobs, in SQLite or PostgreSQL. Used by the service alone."""
