"""What can be said of the pages without running them: links lead somewhere, commands are ours with flags that exist, and few
are exempt."""

import argparse
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro

from tests.docs.blocks import MOST_EXEMPT, ROOT, Block, Page, pages, whole, without_comment
from tests.docs.smaller import smaller
from train import command_line
from tubecell.__main__ import programs

PAGES = pages()


class Accepted(BaseException):
    """What a program's command line was read as."""


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs read their command line, and no more."""

    def once(read: Any) -> Any:
        def accepted(*given: Any, **named: Any) -> None:
            raise Accepted(read(*given, **named))

        return accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", once(argparse.ArgumentParser.parse_args))
    monkeypatch.setattr(command_line, "_resolved", once(command_line._resolved))
    monkeypatch.setattr(tyro, "cli", once(tyro.cli))


def calls_of(command: str) -> Iterator[list[str]]:
    """Our programs in a line of bash, with their words: [["pretrain", "tiny", "--out", "RUN"]]."""
    lexer = shlex.shlex(command.replace("\n", " ; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list[str]()
    for word in [*lexer, ";"]:
        if not set(word) <= set("();<>|&"):
            words.append(word)
            continue
        if word.startswith((">", "<")):  # the next word is a file
            words = [*words, word]
            continue
        words = words[: next((n for n, each in enumerate(words) if each.startswith((">", "<"))), len(words))]
        if "tubecell" in words and len(words) > words.index("tubecell") + 1:
            yield words[words.index("tubecell") + 1 :]
        elif script := next(
            (each for each in words if re.fullmatch(r"(?:train|dataset_builders|benchmarks)/\w+\.py", each)), None
        ):
            known = {module.replace(".", "/") + ".py": name for name, (module, _) in programs().items()}
            yield [known.get(f"tubecell/{script}", known.get(script, script)), *words[words.index(script) + 1 :]]
        words = []


def check(words: list[str]) -> None:
    """Raises AssertionError for a program that is not ours, or words that it does not take."""
    found = programs()
    if words[0].startswith("-"):
        return
    assert words[0] in found, f"there is no program {words[0]!r}"
    module = found[words[0]][0].removeprefix("tubecell.")
    main = runpy.run_path(str(ROOT / f"{module.replace('.', '/')}.py"))["main"]
    left: object = "it was not read as a command line"
    try:
        main(words[1:])
    except Accepted:
        left = 0
    except SystemExit as end:
        left = end.code
    assert left in (0, None), f"refused: {words}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.stem)
def test_commands_are_ours(
    page: Page, reading: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = list(page.blocks())
    for block in blocks:
        if block.file:
            Path(block.file).write_text(block.text)
    for block in blocks:
        for command in block.commands() if block.language == "bash" else ():
            for words in calls_of(smaller(command)):
                fault = None
                try:
                    check(words)
                except AssertionError as error:
                    fault = error
                if fault:
                    said = capsys.readouterr().err
                    pytest.fail(f"{page.name}, line {block.line}: {command}\n{fault}\n{said}", pytrace=False)


def test_unknown_flags_and_programs_are_found(reading: None, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "torchrun --n 2 -m tubecell pretrain tiny --optim.base-lr 1e-3 > log && tubecell subset A --out B | grep x"
    assert list(calls_of(lines)) == [["pretrain", "tiny", "--optim.base-lr", "1e-3"], ["subset", "A", "--out", "B"]]
    for words in calls_of(lines):
        check(words)
    for words in (["pretrian"], ["pretrain", "tiny", "--lr", "1"], ["subset", "A", "--uot", "B"], ["pretrain", "tinny"]):
        with pytest.raises(AssertionError):
            check(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.stem)
def test_links_lead_somewhere(page: Page) -> None:
    lost = []
    for link in page.links():
        place, _, anchor = link.partition("#")
        target = page.path.parent / place if place else page.path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in Page(target.resolve()).anchors()):
            lost.append(link)
    assert not lost


def test_few_are_exempt() -> None:
    exempt = [f"{page.name}, line {block.line}: {block.exempt}" for page in PAGES for block in page.blocks() if block.exempt]
    assert len(exempt) <= MOST_EXEMPT, "\n".join(exempt)


def test_a_page_is_read(tmp_path: Path) -> None:
    text = """# One, two
See [there](#one-two) and [more](x.md) and `[no](link)`.
<!-- docs-test: not run, why not -->

```bash
a \\
  b  # said
if c; then
  d 'x # y'
fi
```
- in a list
  ```toml
  # A.toml
  a = 1
  ```

```bash
# no heading
```
# One, two
"""
    (tmp_path / "page.md").write_text(text)
    page = Page(tmp_path / "page.md")
    bash, toml, _ = page.blocks()
    assert bash.exempt == "why not" and bash.commands() == ["a b", "if c; then\n  d 'x # y'\nfi"] and bash.line == 5
    assert (toml.file, toml.text, toml.exempt) == ("A.toml", "# A.toml\na = 1\n", "")
    assert page.anchors() == {"one-two", "one-two-1"} and page.links() == ["#one-two", "x.md"]
    assert without_comment("a 'b # c' d#e # f") == "a 'b # c' d#e" and not whole("for a in b; do")
    with pytest.raises(ValueError, match="line 3: no bash: if a"):
        Block("bash", "if a\n", 3).commands()
    (tmp_path / "page.md").write_text("```bash\na\n")
    with pytest.raises(ValueError, match="a block without an end"):
        list(page.blocks())


def test_what_is_made_smaller() -> None:
    assert smaller("tubecell pretrain vit-b-hybrid --dry-run") == "tubecell pretrain vit-b-hybrid --dry-run"
    longer = smaller("torchrun --nproc-per-node 8 -m tubecell pretrain x --steps 20000 | tee log")
    assert longer.startswith("torchrun --standalone --nproc-per-node 2 -m tubecell pretrain x --model.input-size 64")
    assert longer.endswith(" --steps 5 | tee log") and "20000" not in longer
    assert smaller("tubecell subset A --out B") == "tubecell subset A --out B"
