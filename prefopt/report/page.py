"""Pages from templates: everything inside one HTML file, and every text escaped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from prefopt.common.files import write_text


def render(template: str, **context: Any) -> str:
    """The page that `templates/<template>` makes of `context`. Only `Markup` (our own figures) is not escaped."""
    environment = Environment(
        loader=PackageLoader("prefopt.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["signed"] = signed
    return environment.get_template(template).render(**context)


def write_page(path: Path, html: str) -> None:
    """Write whole or not at all; a browser that reloads in between never sees half a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html)


def number(value: float, digits: int = 2) -> str:
    """A figure for reading: fixed digits, a true minus sign, a dash where there is none, no "-0.00"."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """Like `number`, with a plus sign before what is above zero."""
    text = number(value, digits)
    return f"+{text}" if math.isfinite(value) and float(f"{value:.{digits}f}") > 0 else text
