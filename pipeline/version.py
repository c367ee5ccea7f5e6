"""Which tubecell this is."""

import subprocess
from importlib import metadata

from pipeline.children import ROOT

CHECKOUT = None if __name__.startswith("tubecell.") else ROOT  # None where it is installed


def version() -> str:
    """Of the installed package."""
    try:
        return metadata.version("tubecell")
    except metadata.PackageNotFoundError:
        return "not installed"


def git_commit() -> str | None:
    """The checkout's commit, with "+" if files were changed since; None where this is none, whatever it lies in."""
    if CHECKOUT is None or not (CHECKOUT / ".git").exists():
        return None
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
