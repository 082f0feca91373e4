"""`prefopt import`: settings of other trainers as ours, with what has no equal here and where a formula differs."""

from prefopt.migrate.read import read
from prefopt.migrate.translation import Translation

__all__ = ["Translation", "read"]
