"""The Jinja source of a chat template: where it comes from, its date, and the defaults of its arguments."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.data.data_config import DataConfig
from prefopt.errors import UserError

NAMED = Path(__file__).with_name("chat_templates")
CLOCK = "strftime_now"  # the function by which templates read today's date
DIRECTIVES = "aAbBcdDeFHIjmMpSTuUVwWxXyYzZ"  # of its formats


def template_source(name: str, tokenizer: Any) -> str | None:
    """The Jinja source that `data.template` names, or None for plain text.

    Raises:
        UserError: no such template.
    """
    if name == "auto":
        own = tokenizer.chat_template
        return own.get("default") if isinstance(own, dict) else own
    if name == "plain":
        return None
    for path in (Path(name), NAMED / f"{name}.jinja"):
        if path.suffix == ".jinja" and os.path.isfile(path):  # the text of a template is too long for a name
            return path.read_text(encoding="utf-8")
    known = ["auto", "plain", *sorted(path.stem for path in NAMED.glob("*.jinja"))]
    raise UserError(f"no template {name[:200]!r}: data.template is one of {known}, or a .jinja file")


def on_date(source: str, date: str) -> str:
    """A template in which it is always this day, so that the same records give the same tokens on any day."""
    if CLOCK not in source:
        return source
    day = datetime.date.fromisoformat(date)
    fields = {f"%{letter}": day.strftime(f"%{letter}") for letter in DIRECTIVES}
    fields |= {f"%-{letter}": fields[f"%{letter}"].lstrip("0") for letter in "dmj"}  # without leading zeros
    replaced = "".join(f".replace({name!r}, {value!r})" for name, value in fields.items())
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{source}"


def with_defaults(source: str, arguments: Mapping[str, Any]) -> str:
    """A template that takes these arguments where it is given no others."""
    defaults = "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif %}}"
        for name, value in sorted(arguments.items())
    )
    return source if not defaults or source.startswith(defaults) else f"{defaults}\n{source}"


def trained_template(tokenizer: Any, data: DataConfig) -> str | None:
    """The template with which prompts were written in training, with its arguments as defaults; None for plain text.

    Whoever renders a prompt with it gives no arguments, and gets the prompt that the model knows.
    """
    source = template_source(data.template, tokenizer)
    return None if source is None else with_defaults(source, data.chat_template_kwargs)
