"""The one name of everything that is tubecell's, outside of its checkout: `from tubecell.pipeline.loader import ClipLoader`.

An installed package holds the folders themselves. In the checkout they lie beside this one and go by their own names, and
`tubecell.X` is the module `X`: the same object.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parents[1]


class _Checkout(MetaPathFinder, Loader):
    """Finds the checkout's modules, and loads them."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, own = name.partition(".")
        known = package == __name__ and (ROOT / own.partition(".")[0] / "__init__.py").exists()
        found = find_spec(own) if known else None
        return spec_from_loader(name, self, origin=found.origin) if found else None

    def exec_module(self, module: ModuleType) -> None:
        found = import_module(own := module.__name__.partition(".")[2])
        if not found.__file__ or not Path(found.__file__).is_relative_to(ROOT):
            raise ImportError(f"{found} hides tubecell's {own}: rename it, or install tubecell with `pip install {ROOT}`")
        sys.modules[module.__name__] = found

    def get_code(self, name: str) -> CodeType | None:
        """For `python -m`."""
        spec = find_spec(name.partition(".")[2])
        return spec.loader.get_code(spec.name) if spec and isinstance(spec.loader, InspectLoader) else None


if not Path(__file__).with_name("pipeline").exists():
    sys.meta_path.insert(0, _Checkout())
