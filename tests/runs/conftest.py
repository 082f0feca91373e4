"""A tiny model and a small file of pairs, as for the command line's tests."""

from tests.cli.conftest import model_folder, pairs_file

__all__ = ["model_folder", "pairs_file"]
