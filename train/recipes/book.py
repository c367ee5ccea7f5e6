"""A stage's recipes by name, and the official launch scripts that they stand for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from train.config import LoopConfig

Config = TypeVar("Config", bound=LoopConfig)
Make = TypeVar("Make", bound=Callable[..., LoopConfig])


class RecipeBook(dict[str, Callable[..., Config]]):
    """{name: function that gives a configuration}, in chapters."""

    def __init__(self, chapters: Mapping[str, Sequence[Callable[..., Config]]]) -> None:
        """The name is the function's, with - for _."""
        named = {title: {make.__name__.replace("_", "-"): make for make in makers} for title, makers in chapters.items()}
        super().__init__((name, make) for makers in named.values() for name, make in makers.items())
        self.chapters = {title: list(makers) for title, makers in named.items()}
        """{title: names}, in the order of the help."""


@dataclass(frozen=True, slots=True)
class Script:
    """An official launch script."""

    name: str
    """In its repository, without what all of them have: "v2/finetune/vit_g_k400_ft"."""
    otherwise: Mapping[str, Any]
    """What the recipe's function takes to give the script's values."""


SCRIPTS: dict[Callable[..., LoopConfig], Script] = {}


def official(script: str, **otherwise: Any) -> Callable[[Make], Make]:
    """Says of a recipe which script it stands for, and what that has otherwise."""

    def noted(make: Make) -> Make:
        SCRIPTS[make] = Script(script, otherwise)
        return make

    return noted


def as_in_script(make: Callable[..., Config]) -> Config:
    """The configuration that a recipe's script has, for --official-script. Raises ValueError for a recipe without one."""
    if make not in SCRIPTS:
        raise ValueError("--official-script: this recipe is of no script; leave the flag out")
    return replace(make(**SCRIPTS[make].otherwise), official_script=True)
