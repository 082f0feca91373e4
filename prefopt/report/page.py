"""Renders pages from templates: each is one self-contained file, and every text in it is escaped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from prefopt.common.files import write_text
from prefopt.common.redact import without_control
from prefopt.report.formatting import number, signed
from prefopt.report.readable import readable

PAGE = "report.html"
TABLE = re.compile(r"<table\b.*?</table>", re.DOTALL)
ROW = re.compile(r"<tr\b.*?</tr>", re.DOTALL)
CELL = re.compile(r"<th\b([^>]*)>(.*?)</th>", re.DOTALL)


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
    environment.filters |= {"number": number, "signed": signed, "plain": markdown_line, "readable": readable,
                            "breakable": breakable, "code": code}  # fmt: skip
    text = without_control(environment.get_template(template).render(**context))
    return label_cells(text) if escape else text


def code(text: str) -> Markup:
    """Escape a sentence of ours and set what stands in backticks as code."""
    parts = str(text).split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 and i < len(parts) - 1 else
                           (escape("`" + part) if i % 2 else escape(part)) for i, part in enumerate(parts))  # fmt: skip


def label_cells(html: str) -> str:
    """Give each cell of a table the name of its column (`data-label`), which a narrow screen shows in front of it."""

    def label(table: re.Match[str]) -> str:
        head, body = table[0].split("</thead>", 1) if "</thead>" in table[0] else ("", table[0])
        names = [_attribute(attributes, text) for attributes, text in CELL.findall(head)]
        return f"{head}</thead>{ROW.sub(lambda row: _labelled(row[0], names), body)}" if names else table[0]

    return TABLE.sub(label, html)


def _attribute(attributes: str, text: str) -> str:
    """Return the name of a column as the value of an attribute: its text, or its `aria-label`."""
    hidden = re.search(r'aria-label="([^"]*)"', attributes)
    words = hidden[1] if hidden else " ".join(re.sub(r"<[^>]+>", " ", text.replace("<wbr>", "")).split())
    return words.replace('"', "&quot;")


def _labelled(row: str, names: list[str]) -> str:
    columns = iter(names)

    def cell(found: re.Match[str]) -> str:
        name = next(columns, "")
        return f'<td data-label="{name}"{found[2]}>' if found[1] == "td" and name else found[0]

    return re.sub(r"<(td|th)\b([^>]*)>", cell, row)


def breakable(name: str) -> Markup:
    """Return the name of an option that a narrow column may break behind its dots and underscores."""
    return Markup(re.sub(r"([._])(?=\w)", r"\1<wbr>", str(escape(name))))


def write_page(path: Path, html: str) -> None:
    """Write a page whole or not at all, so that a browser never loads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html)


def markdown_line(text: Any) -> str:
    """Return a value from outside on one line, without control characters, its Markdown signs escaped."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", line)
