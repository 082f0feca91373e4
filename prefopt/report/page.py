"""Renders pages from templates: each is one self-contained file, and every text in it is escaped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from prefopt.common.files import write_text
from prefopt.common.redact import without_control
from prefopt.report.formatting import number, signed

PAGE = "report.html"


def render(template: str, *, escape: bool = True, **context: Any) -> str:
    """Render `templates/<template>`. Of what `context` holds, only `Markup` (our own figures) is not escaped.

    Args:
        template: the name of the file.
        escape: False for Markdown, whose template escapes with the filter `plain`.
        context: the values of the template.
    """
    environment = Environment(
        loader=PackageLoader("prefopt.report", "templates"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "plain": markdown_line}
    return without_control(environment.get_template(template).render(**context))


def write_page(path: Path, html: str) -> None:
    """Write a page whole or not at all, so that a browser never loads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html)


def markdown_line(text: Any) -> str:
    """Return a value from outside on one line, without control characters, its Markdown signs escaped."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", line)
