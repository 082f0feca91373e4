"""Helpers that every package may use: files, digests, caches, secrets."""
