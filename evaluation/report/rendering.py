"""Templates to text: HTML with everything escaped, Markdown with its own marks escaped."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from evaluation.report import wording

_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&])")


def render(template: str, **content: Any) -> str:
    """Fill a template of this package; a name that it lacks is an error, not a gap."""
    return _environment().get_template(template).render(**content)


def escape_markdown(text: str) -> str:
    """Make of any text one line that Markdown shows as it is, also in a table."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("evaluation.report", "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    words = ("figure", "signed", "count", "percent", "third_digit", "duration", "amount")
    environment.filters.update({name: getattr(wording, name) for name in words}, md=escape_markdown)
    return environment
