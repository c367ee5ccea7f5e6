"""docs/troubleshooting.md quotes what we say: every message in it is a part of our code."""

import re

import pytest

from tests.docs.blocks import ROOT

FOLDERS = ("dataset_builders", "model", "pipeline", "tubecell", "train")
TORCH = {"_orig_mod.", "module.", "backbone."}  # prefixes of names, not ours


def spoken() -> str:
    """All strings of the code, those over several lines in one."""
    texts = [file.read_text() for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(texts))


def messages() -> list[str]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    return [message for message in re.findall(r"\*\*`([^`]+)`", page) if message not in TORCH]


@pytest.fixture(scope="module")
def said() -> str:
    return spoken()


def test_every_message_is_one_of_ours(said: str) -> None:
    assert len(messages()) >= 25
    parts = {part.strip(" ,:") for message in messages() for part in message.split("…")}
    assert [part for part in sorted(parts) if part and part not in said] == []


def test_another_would_be_found(said: str) -> None:
    assert "lower views_per_step to" in said and "lower views_per_stepp to" not in said
