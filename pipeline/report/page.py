"""The page kit: a jinja template and a style sheet beside the code that uses them become one file that needs no network.

`page.html` has what all pages share, `page.css` how they look, in light and dark; `page.css` is followed by the page's own.
Values reach HTML through `shown` and are escaped there, unless they are Markup.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent
COLOURS = 8  # classes c0 to c7 of the style sheet


def render(template: Path, kind: str, heading: object, subtitle: str, **values: Any) -> str:
    """The whole document: `template`, the body's, with `values`, and the style sheet beside it. Its policy forbids every
    request, so that nothing in it can reach a network."""
    environment = environment_of(template.parent, HERE)
    kit = environment.get_template("page.html").module
    environment.globals |= {name: part for name, part in vars(kit).items() if not name.startswith("_")}
    body = Markup(environment.get_template(template.name).render(values))
    style = Markup((HERE / "page.css").read_text("utf-8") + template.with_suffix(".css").read_text("utf-8"))
    return str(kit.page(kind, heading, subtitle, style, body))  # type: ignore[attr-defined]


def environment_of(*folders: Path) -> Environment:
    """What templates in these folders are rendered by: values are escaped, and forms of numbers known."""
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"f": form, "colour": colour}
    environment.globals["share"] = share
    return environment


def shown(value: object) -> str:
    """As people write it: thousands apart, a dash for nothing; of text from outside (names of files, messages) what is not
    printable is an escape. Markup stays as it is."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else "–" if value is None else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def form(value: float | None, spec: str = "") -> str:
    """A number written as `spec` says, or else with three digits; a dash for nothing."""
    return "–" if value is None else format(value, spec or (",.0f" if value >= 100 else ".3g"))


def share(part: float, whole: float) -> str:
    """ "12.3 %", with a sign for what is there but too small to show."""
    if not whole:
        return "–"
    return "< 0.1 %" if 0 < part / whole < 0.0005 else f"{100 * part / whole:.1f} %"


def colour(number: int) -> str:
    """The class of what stands at this place of a list; beyond the last colour they share it."""
    return f"c{min(number, COLOURS - 1)}"
