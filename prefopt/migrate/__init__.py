"""Converts the settings of other trainers, and lists what has no equivalent and where a formula differs."""
