"""The small model and data that the pages refer to."""

from tests.cli.conftest import finished, model_folder, pairs_file, sketched  # noqa: F401 - fixtures
