"""Whole jobs through the launcher's service with nothing replaced: mutual TLS, real launchers, real Ray. Tests only."""
