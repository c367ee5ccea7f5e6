"""The command line of a stage: RECIPE --flag value ..., or a TOML file, -> its configuration.

recipe = "vit-b-hybrid"               # RUN.toml: any flag, with _ for -; relative paths are relative to it
data = "DATASET"
out = "RUN"
[optim]
base_lr = 2e-4
[views]
mixture = {k710 = 1.0, ssv2 = 0.5}

Flags win over the file, the file over the recipe. Flags, types, values and help are the configuration's own fields; argparse
lays the help out. What cannot be is said in a line: the flag, the value, what is allowed, what to do.
"""

import argparse
import ast
import difflib
import inspect
import os
import re
import sys
import textwrap
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pipeline.settings import RENAMED, fields_of, flag, flag_name, renamed, toml_table, translated, value_of, with_values
from pipeline.storage.remote import is_url
from train.config import LoopConfig
from train.recipes.book import SCRIPTS, RecipeBook, as_in_script
from train.watch.last_words import leave_last_words

Config = TypeVar("Config", bound=LoopConfig)
FIRST = (  # what --help shows, the rest is for --help-all
    *("data", "features", "annotations", "out", "config", "dry_run", "steps", "epochs", "save_every"),
    *("views.views_per_step", "optim.base_lr", "compute.views_per_forward", "compute.activation_checkpointing"),
)
HELP, HELP_ALL = {"-h", "--help"}, "--help-all"
IN_WORDS: Mapping[Any, str] = {int: "a whole number", float: "a number", str: "a text", Path: "a path", bool: "True or False"}
METAVARS: Mapping[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH", bool: "True|False"}


class Kind(NamedTuple):
    """What a field takes: so many words, each of a type or one of a tuple of choices."""

    words: tuple[Any, ...]
    optional: bool = False  # or None
    many: bool = False  # as often as one likes

    @staticmethod
    def of(annotation: Any) -> "Kind":
        """Of a field's annotation. Only what configurations are made of is known."""
        if get_origin(annotation) in (Union, types.UnionType):
            (inner,) = (part for part in get_args(annotation) if part is not types.NoneType)
            return Kind.of(inner)._replace(optional=True)
        if get_origin(annotation) is Literal:
            return Kind((get_args(annotation),))
        if get_origin(annotation) is tuple:
            first, *_, last = get_args(annotation)
            return Kind(get_args(first) or (first,), many=True) if last is Ellipsis else Kind(get_args(annotation))
        assert annotation in IN_WORDS, annotation
        return Kind((annotation,))

    def __str__(self) -> str:
        said = [IN_WORDS.get(word) or "one of " + ", ".join(map(str, word)) for word in self.words]
        whole = said[0] if len(said) == 1 else f"{len(said)} values, {' and '.join(said)}"
        return whole + (", as often as needed" if self.many else "") + (", or None" if self.optional else "")

    @property
    def metavar(self) -> str:
        return " ".join(METAVARS.get(word) or "|".join(map(str, word)) for word in self.words) + (" ..." if self.many else "")

    def read(self, words: Sequence[str], name: str, like: Any = None) -> Any:
        """The value that words say. Raises ValueError that begins with `name`; `like` is an example."""
        if self.optional and list(words) == ["None"]:
            return None
        if self.words == (bool,) and not words:
            return True
        size, given = len(self.words), " ".join(word or "''" for word in words)
        example = "" if like in (None, ()) or self.words == (bool,) else f", such as {' '.join(spoken(like))}"
        if not words and not self.many:
            raise ValueError(f"{name} needs a value: {self}{example}")
        if len(words) % size if self.many else len(words) != size:
            raise ValueError(f"{name} {given} must be {self}{example}; given are {len(words)}")
        try:
            values = [_read(kind, word, f"{self}{example}") for kind, word in zip(cycle(self.words), words, strict=False)]
        except ValueError as error:
            raise ValueError(f"{name} {given} {error}") from None
        if self.many and size > 1:
            return tuple(zip(*[iter(values)] * size, strict=True))
        return tuple(values) if self.many or size > 1 else values[0]


def _read(kind: Any, word: str, allowed: str) -> Any:
    """One word. Raises ValueError."""
    if kind is bool:
        kind, word = (True, False), word.capitalize()
    if isinstance(kind, tuple):
        choices = {str(choice): choice for choice in kind}
        if word not in choices:
            raise ValueError(f"is not known{perhaps(word, choices)}; allowed are {', '.join(choices)}")
        return choices[word]
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f"must be {allowed}") from None


def spoken(value: Any) -> list[str]:
    """The words for a value: (("k710", 1.0),) or {"k710": 1.0} -> ["k710", "1.0"]."""
    if isinstance(value, Mapping):
        value = value.items()
    elif isinstance(value, str) or not isinstance(value, Iterable):
        return [str(value)]
    return [word for part in value for word in spoken(part)]


def perhaps(word: str, known: Iterable[str]) -> str:
    """What might have been meant."""
    close = difflib.get_close_matches(word, list(known), cutoff=0.5)
    return f"; perhaps {' or '.join(close)}" if close else ""


def from_command_line(recipes: Mapping[str, Callable[[], Config]], arguments: Sequence[str], prog: str | None = None) -> Config:
    """The resolved configuration. `recipes` are a stage's; `prog` is what its command is called, by default this process's.

    Exits with 0 after the help, with 2 after the message for what cannot be.
    """
    prog = prog or Path(sys.argv[0]).name
    recipe = arguments[0] if arguments and not arguments[0].startswith("-") else None
    try:
        if recipe:
            _check_recipe(recipes, recipe, prog)
        if HELP_ALL in arguments or HELP & set(arguments):
            print(help_of(recipes, recipe, prog, whole=HELP_ALL in arguments))
            raise SystemExit(0)
        return _resolved(recipes, recipe, translated(arguments[bool(recipe) :]), prog)
    except ValueError as error:
        told = f"{prog.split()[-1].removesuffix('.py')}: {error}"
        if os.environ.get("RANK", "0") == "0":  # all ranks have the same words
            print(told, file=sys.stderr)
        leave_last_words(told)
        raise SystemExit(2) from None


def _check_recipe(recipes: Collection[str], name: str, prog: str, where: str = "") -> None:
    if name not in recipes:
        raise ValueError(f"{where}there is no recipe {name!r}{perhaps(name, recipes)}; `{prog} --help` lists them")


def _resolved(recipes: Mapping[str, Callable[[], Config]], recipe: str | None, arguments: Sequence[str], prog: str) -> Config:
    one = next(iter(recipes.values()))()  # whose fields all of them have
    flags = _words(arguments, one, f"`{prog} {recipe or 'RECIPE'} {HELP_ALL}` shows all")
    file = Kind((Path,)).read(flags["config"], "--config") if "config" in flags else None
    table: dict[str, list[str]] = {}
    if file:
        named, table = read_toml(file, one)
        if not recipe and named:
            _check_recipe(recipes, recipe := str(named), prog, f"--config {file}: ")
    if not recipe:
        raise ValueError(f"a recipe comes first, as in `{prog} {next(iter(recipes))} ...`; `{prog} --help` lists them")
    config = recipes[recipe]()
    fields, values = fields_of(config), dict[str, Any]()
    for words, where in ((table, f"--config {file}: "), (flags, "")):
        said = {}
        for name in words:
            called = where + (name if where else flag(name))
            said[name] = Kind.of(fields[name][0].type).read(words[name], called, value_of(config, name))
        length = {name: said[name] for name in ("steps", "epochs") if said.get(name)}
        if len(length) == 2 and where:
            raise ValueError(f"{where}steps {said['steps']} and epochs {said['epochs']} both say how long a run is; give one")
        if len(length) == 1:  # it overrides the recipe's, or the file's, other
            values |= dict.fromkeys({"steps", "epochs"} - length.keys())
        values |= said
    try:
        config = with_values(config, values)
        if config.official_script:
            config = with_values(as_in_script(recipes[recipe]), values)
        both = {"steps", "epochs"} <= flags.keys()  # a contradiction, unless an older run is meant, see RunFolder
        return with_values(config, {"epochs": None}) if config.steps and not both else config
    except ValueError as error:
        raise ValueError(in_flags(str(error), config, values)) from None


def _words(arguments: Sequence[str], config: Any, help_: str) -> dict[str, list[str]]:
    """{"optim.betas": ["0.8", "0.9"]}; of a flag that is given twice, the last."""
    known, found, words = fields_of(config), dict[str, list[str]](), list[str]()
    for argument in arguments:
        name = flag_name(argument)
        if not name and re.match(r"-(?!inf|nan)[a-zA-Z-]", argument):  # no number
            raise ValueError(f"there is no flag {argument}{_perhaps_flag(argument.lstrip('-'), known)}; {help_}")
        if name:
            said, equals, value = argument.partition("=")
            negated = flag(name) != said.replace("_", "-")
            if name not in known or (negated and bool not in Kind.of(known[name][0].type).words):
                raise ValueError(f"there is no flag {said}{_perhaps_flag(name, known)}; {help_}")
            words = found[name] = ["False"] * negated + [value] * bool(equals)
        elif not found:
            raise ValueError(f"{argument!r} belongs to no flag: after the recipe come flags and their values; {help_}")
        else:
            words.append(argument)
    return found


def _perhaps_flag(name: str, known: Collection[str]) -> str:
    """Of another group, misspelled, or what it was called once."""
    name, old = name.replace("-", "_"), [full for full, today in RENAMED.items() if today in known]
    called = {full.rpartition(".")[2]: RENAMED.get(full, full) for full in (*old, *known)}
    last = name.rpartition(".")[2]
    close = [called[part] for part in difflib.get_close_matches(last, called, cutoff=0.75)]
    close = [called[last]] if last in called else close + difflib.get_close_matches(name, list(known), cutoff=0.6)
    return f"; perhaps {' or '.join(list(dict.fromkeys(map(flag, close)))[:3])}" if close else ""


def read_toml(file: Path, config: Any) -> tuple[str | None, dict[str, list[str]]]:
    """A RUN.toml -> the recipe that it names, {"optim.base_lr": ["0.0002"]} as `Kind.read` takes them. Raises ValueError for
    what `config` lacks."""
    table = toml_table(file)
    recipe, known = table.pop("recipe", None), fields_of(config)
    values = renamed(_flat(table, {*known, *RENAMED}), str(file))
    for name in values:
        if name not in known or name == "config":
            raise ValueError(f"--config {file}: {name} is not known{perhaps(name, known)}; allowed is what {HELP_ALL} shows")
    words = {name: spoken(value) for name, value in values.items()}
    for name, (field, _) in known.items():
        if name in words and is_place(field) and words[name] != ["None"]:
            words[name] = [word if is_url(word) else str(file.resolve().parent / word) for word in words[name]]
    return recipe, words


def is_place(field: Any) -> bool:
    """Whether a field says where something lies: such a value of a file is relative to it, and goes on on another machine."""
    return field.metadata.get("place", False) or Path in Kind.of(field.type).words


def _flat(table: Mapping[str, Any], known: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Nested tables -> {"optim.base_lr": ...}; a value may be a table itself."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = prefix + key
        flat |= _flat(value, known, f"{name}.") if isinstance(value, Mapping) and name not in known else {name: value}
    return flat


def in_flags(text: str, config: Any, given: Collection[str] = (), within: str = "") -> str:
    """What the parts of a configuration say of their fields, in flags: "mask_ratio 1.5 ..." -> "--views.mask-ratio 1.5 ...".

    A name of one word could be any word: it is a field's at the beginning only. Of two with one last name, `given` says which;
    `within` a group, such as "views.", for texts that speak of other things, too (a manifest has num_frames).
    """
    names = [name for name in fields_of(config) if name.startswith(within)]
    flags = {name.rpartition(".")[2]: flag(name) for name in sorted(names, key=lambda name: name in given)}
    long = "|".join(name for name in flags if "_" in name)
    text = re.sub(rf"(?<![\w./-])({long})(?![\w/-])", lambda found: flags[found[1]], text)
    return re.sub(r"^([a-z]+)(?=:? )", lambda found: flags.get(found[1], found[1]), text)


def check_length(config: LoopConfig, given: Collection[str]) -> None:
    """Raises ValueError if a command line says twice how long a run is."""
    if {"steps", "epochs"} <= set(given) and config.steps and config.epochs:
        raise ValueError(f"--steps {config.steps} and --epochs {config.epochs}: either says how long a run is; give one")


def flags_of(arguments: Sequence[str]) -> set[str]:
    """The fields that a command line names: {"optim.base_lr"}."""
    return {RENAMED.get(name, name) for name in map(flag_name, arguments) if name}


def recipe_of(arguments: Sequence[str], file: Path | None) -> str | None:
    """The recipe that a command line names, or else its --config FILE."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0]
    return toml_table(file).get("recipe") if file else None


def help_of(recipes: Mapping[str, Callable[[], Config]], recipe: str | None, prog: str, *, whole: bool) -> str:
    """What --help prints: the recipes, or one, with what one needs first; the `whole` has all flags, group by group."""
    config = recipes[recipe or next(iter(recipes))]()
    begin = f"{prog} {recipe or 'RECIPE'}"
    more = [] if whole else [f"`{begin} {HELP_ALL}` shows all flags."]
    more += (
        ["Where a flag can do without a value, None takes it away."] if recipe else [f"`{begin} --help` shows its defaults."]
    )
    parser = argparse.ArgumentParser(
        usage=f"{begin} --flag value ...",
        description=_text(recipes[recipe]) + _script_text(recipes[recipe]) if recipe else None,
        epilog=" ".join(more),
        add_help=False,
        formatter_class=partial(argparse.HelpFormatter, max_help_position=30),
    )
    chapters = recipes.chapters if isinstance(recipes, RecipeBook) else {"": list(recipes)}
    for title, names in chapters.items() if not recipe else ():
        group = parser.add_argument_group(f"recipes, {title}" if title else "recipes")
        for name in names:
            group.add_argument(name, help=re.split(r" \(|\. ", _text(recipes[name]))[0])
    fields, groups = fields_of(config), dict[str, Any]()
    for name in fields if whole else [name for name in FIRST if name in fields]:
        part = name.rpartition(".")[0] if whole else ""
        if part not in groups:
            title = f"--{part}.*" if part else "the run" if whole else "what one needs first"
            described = _text(type(value_of(config, part))) if part else None
            groups[part] = parser.add_argument_group(title, described)
        _show(groups[part], name, config, example=recipe is not None)
    return parser.format_help().rstrip()


def _show(group: Any, name: str, config: Any, *, example: bool) -> None:
    """A flag in the help, with its value."""
    *path, last = name.split(".")
    owner = value_of(config, ".".join(path)) if path else config
    field, value = fields_of(owner)[last][0], getattr(owner, last)
    kind = Kind.of(field.type)
    shown = f" (default: {' '.join(spoken(value))})" if example and value not in (None, False, ()) else ""
    text = (in_flags(field_texts(type(owner)).get(last, ""), config) + shown).replace("%", "%%")
    if kind == Kind((bool,)):
        group.add_argument(flag(name), flag(".".join([*path, f"no_{last}"])), action="store_true", help=text)
    else:
        group.add_argument(flag(name), metavar="PATH|URL" if field.metadata.get("place") else kind.metavar, help=text)


def field_texts(kind: type) -> dict[str, str]:
    """{name: the string below it} of a dataclass's fields, and of those that it inherits."""
    texts: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if is_dataclass(base)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for line, text in pairwise(tree.body):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(text, ast.Expr):
                texts[line.target.id] = " ".join(ast.literal_eval(text.value).split())
    return texts


def _script_text(make: Callable[[], LoopConfig]) -> str:
    """What --official-script makes of a recipe, in flags."""
    if make not in SCRIPTS:
        return ""
    config, script = make(), as_in_script(make)
    values = {name: value for name in fields_of(config) if (value := value_of(script, name)) != value_of(config, name)}
    del values["official_script"]
    said = (f"{flag(name)} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in values.items())
    return f" --official-script, {SCRIPTS[make].name}: {', '.join(said) or 'the same values'}."


def _text(documented: Any) -> str:
    return " ".join((documented.__doc__ or "").split()).replace("%", "%%")
