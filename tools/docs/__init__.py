"""The documentation's machinery: the job file reference, and what holds every command and job of docs/ to the code."""
