"""The record side: what is known of adapters and merges, kept, asked and passed on; no torch, no Prefect."""
