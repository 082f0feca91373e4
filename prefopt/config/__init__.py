"""Configuration: the dataclasses of a run, composed by Hydra."""
