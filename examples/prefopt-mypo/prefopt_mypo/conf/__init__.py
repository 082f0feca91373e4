"""Presets of this package: `experiment=mypo_short`."""
