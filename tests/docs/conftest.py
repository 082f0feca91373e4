"""The small model and data that the pages speak of."""

from tests.cli.conftest import model_folder, pairs_file  # noqa: F401 - fixtures
