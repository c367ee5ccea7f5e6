"""Fields that know their own past: what a file means that was written before they were, and what may change on a resume.

A run's config.json, a loader's state and a build's TOML file outlive the code that wrote them. So a field that is added later
may say `was`, what code before it did: whoever lacks the field means that, else the default. And it stays as it was begun: a
command that does not name such a field goes on with the older value. A field that is renamed gets a line in RENAMED.
"""

import dataclasses
import sys
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any, TypeVar

Kind = TypeVar("Kind")
RENAMED = {  # old name -> new: of flags and config.json ("group.field"), of recipes in states and of TOML files ("field")
    "views.threads": "loader.workers",
    "views.workers": "loader.workers",
    "views.prefetch": "loader.prefetch",
    "compute.workers": "loader.workers",
    "compute.prefetch": "loader.prefetch",
    "compute.decoder": "loader.decoder",
    "label_from_folder": "labels_from_folder",
}


def setting(
    default: Any = MISSING,
    *,
    default_factory: Any = MISSING,
    was: Any = MISSING,
    may_change: bool | None = None,
    place: bool = False,
) -> Any:
    """A dataclass field. `was`: what code before this field did; `may_change` on a resume, with all of its fields if it is a
    group of them, but those that say False; `place`: a text that is a path or a URL."""
    metadata = {"may_change": may_change, "place": place} | ({} if was is MISSING else {"was": was})
    return dataclasses.field(default=default, default_factory=default_factory, metadata=metadata)


def toml_table(file: Path) -> dict[str, Any]:
    """Of a user's --config FILE. Raises ValueError where it cannot be read."""
    try:
        return tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"--config {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {file}: is no TOML: {error}") from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> {"optim.base_lr": ...}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return flat


def read(kind: type[Kind], values: Mapping[str, Any], what: str) -> Kind:
    """A flat dataclass from plain values that any code may have written. Raises ValueError for what only newer code knows."""
    known = completed(values, kind)
    if unknown := sorted(known.keys() - {field.name for field in dataclasses.fields(kind)}):  # type: ignore[arg-type]
        raise ValueError(f"{what} has {', '.join(unknown)}, which this tubecell does not know; update it")
    return kind(**known)


def fields_of(config: Any, prefix: str = "", may_change: bool = False) -> dict[str, tuple[Field, bool]]:
    """A dataclass instance, nested ones in it, or a flat dataclass -> {"optim.base_lr": (its field, whether it may change on a
    resume)}."""
    found: dict[str, tuple[Field, bool]] = {}
    for field in dataclasses.fields(config):
        own = field.metadata.get("may_change")
        value, may = getattr(config, field.name), may_change if own is None else own
        if dataclasses.is_dataclass(value):
            found |= fields_of(value, f"{prefix}{field.name}.", may)
        else:
            found[f"{prefix}{field.name}"] = field, may
    return found


def renamed(flat: Mapping[str, Any], file: str | None = None) -> dict[str, Any]:
    """The same values under today's names; of a user's own `file` it says what was renamed."""
    for name in flat if file else ():
        if name in RENAMED:
            print(f"{file}: {name} is called {RENAMED[name]} now", file=sys.stderr)
    return {RENAMED.get(name, name): value for name, value in flat.items()}


def completed(flat: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """What was written by older code, under today's names, and with what it means by fields that it does not know."""
    values = renamed(flat)
    for name, (field, _) in fields_of(config).items():
        default = field.default if field.default_factory is MISSING else field.default_factory()
        meant = field.metadata.get("was", default)
        if name not in values and meant is not MISSING:
            values[name] = meant
    return values


def kept(before: Mapping[str, Any], config: Any, given: Collection[str] = ()) -> dict[str, Any]:
    """{name: older value} of the fields that stay as they were begun: they have a `was`, and nobody named another value.

    `before` is complete. `given` are names that a command line has; a value that is no default was given, too.
    """
    return {
        name: before[name]
        for name, (field, _) in fields_of(config).items()
        if "was" in field.metadata and name not in given and value_of(config, name) == field.default != before[name]
    }


def value_of(config: Any, name: str) -> Any:
    """The value of "optim.base_lr"."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy with other values, by names such as "optim.base_lr"."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        head, dot, rest = name.partition(".")
        if dot:
            groups.setdefault(head, {})[rest] = value
    changes = {name: value for name, value in values.items() if "." not in name}
    changes |= {head: with_values(getattr(config, head), inner) for head, inner in groups.items()}
    return dataclasses.replace(config, **changes)


def flag_name(argument: str) -> str | None:
    """--optim.base-lr, --optim.base-lr=1 or --optim.no-base-lr -> "optim.base_lr"; None for what is no flag."""
    if not argument.startswith("--") or len(argument) == 2:
        return None
    name = argument[2:].partition("=")[0].replace("-", "_")
    group, dot, last = name.rpartition(".")
    return f"{group}{dot}{last.removeprefix('no_')}"


def flag(name: str) -> str:
    """ "optim.base_lr" -> "--optim.base-lr"."""
    return f"--{name.replace('_', '-')}"


def translated(arguments: Iterable[str]) -> list[str]:
    """A command line with today's flags for those that were renamed, of which it says so."""
    new = []
    for argument in arguments:
        name = flag_name(argument)
        if name in RENAMED:
            print(f"{flag(name)} is called {flag(RENAMED[name])} now", file=sys.stderr)
            argument = flag(RENAMED[name]) + "".join(argument.partition("=")[1:])
        new.append(argument)
    return new
