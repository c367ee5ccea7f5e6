"""Markdown of cards: the head that model hubs read, tables, and text from outside that must stay text."""

import json
import re
from collections.abc import Mapping, Sequence

from pipeline.report.page import shown

SPECIAL = re.compile(r"([\\`*_{}\[\]#|~])")


def front_matter(values: Mapping[str, str | Sequence[str]]) -> list[str]:
    """Lines of YAML between two `---`, as the hub of Hugging Face wants them at the beginning of a card. Strings are quoted, so
    nothing in them can be anything else; what is empty is left out."""
    lines = ["---"]
    for name, value in values.items():
        if isinstance(value, str):
            lines += [f"{name}: {json.dumps(value)}"] if value else []
        elif value:
            lines += [f"{name}:", *(f"- {json.dumps(each)}" for each in value)]
    return [*lines, "---", ""]


def literal(text: object) -> str:
    """Text from outside (a name, a message) that is shown as it is: no Markdown, no HTML, one line."""
    return SPECIAL.sub(r"\\\1", shown(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a table; cells are Markdown."""
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]
