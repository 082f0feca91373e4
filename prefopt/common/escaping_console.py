"""A terminal on which texts from files are shown and control nothing."""

from __future__ import annotations

from typing import Any

import rich.console
from rich.text import Text

from prefopt.common.redact import printable


class Console(rich.console.Console):
    """rich's console, which escapes control characters in every string: in lines, tables and their titles."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Make the text of a string; a `Text` made elsewhere is shown as it is."""
        return super().render_str(printable(text), **options)
