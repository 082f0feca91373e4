"""The small model and data that a user brings, as `tests/cli` has them."""

from tests.cli.conftest import model_folder, pairs_file  # noqa: F401 - fixtures
