"""Strings the stages together: settings, Prefect flows, and the command line; no tensor, no SQL."""
