"""A page of documentation -> its blocks of code, the commands in them, its headings and its links.

`bash`: commands that run, in order; `python`: a program that runs; a `toml`, `python`, `csv` or `json` block that begins with
`# NAME.toml` or the like is written to that file instead. Other blocks are looked at by nobody.
`<!-- docs-test: not run, REASON -->` on the line before a block exempts it.
"""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_EXEMPT = 10
EXEMPT = re.compile(r"<!--\s*docs-test:\s*not run,\s*(.+?)\s*-->")
FENCE = re.compile(r"^(\s*)(```+)\s*([\w-]*)\s*$")
NAMED = re.compile(r"#\s*([\w.-]+\.(?:toml|py|csv|json))\b")
PROGRAM = re.compile(r"(?:\btubecell +|\b(?:train|dataset_builders|benchmarks)/)([a-z_-]+)(?:\.py)?")


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between two fences."""

    language: str
    text: str
    line: int
    exempt: str = ""
    """Why it is not run."""

    @property
    def file(self) -> str | None:
        """The name of the file that it is."""
        found = NAMED.match(self.text) if self.language in ("toml", "python", "csv", "json") else None
        return found[1] if found else None

    def commands(self) -> list[str]:
        """Of a bash block, each on one line where it can be, without comments. Raises ValueError for what is no bash."""
        found, lines = [], list[str]()
        for line in re.sub(r"\\\n\s*", "", self.text).splitlines():
            if not lines and (not line.strip() or line.lstrip().startswith("#")):
                continue
            lines.append(line)
            if whole("\n".join(lines)):
                found.append(without_comment("\n".join(lines)))
                lines = []
        if lines:
            raise ValueError(f"line {self.line}: no bash: {lines[0]}")
        return found


@cache
def whole(text: str) -> bool:
    """Whether bash finds nothing missing. (Of a here document without an end it only warns.)"""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    return done.returncode == 0 and not done.stderr


def without_comment(command: str) -> str:
    """Of one line. A # in quotes is none."""
    found = re.match(r"""((?:[^'"#\n]|(?<=\S)#|'[^'\n]*'|"[^"\n]*")*?)\s+#[^\n]*$""", command)
    return found[1] if found else command


@dataclass(frozen=True, slots=True)
class Page:
    """A Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def blocks(self) -> Iterator[Block]:
        """In order. Raises ValueError for a fence without an end."""
        fence, indent, begin, language, kept, exempt = "", "", 0, "", list[str](), ""
        for number, line in enumerate(self.text.splitlines(), 1):
            if fence:
                if line.strip() == fence:
                    yield Block(language, "\n".join(kept) + "\n", begin, exempt)
                    fence = exempt = ""
                else:
                    kept.append(line.removeprefix(indent))
            elif found := FENCE.match(line):
                indent, fence, language = found.groups()
                begin, kept = number, []
            elif line.strip():
                noted = EXEMPT.search(line)
                exempt = noted[1] if noted else ""
        if fence:
            raise ValueError(f"{self.path.name}, line {begin}: a block without an end")

    def code(self) -> str:
        """All that is run or written to files."""
        run = [block for block in self.blocks() if not block.exempt]
        return "\n".join(block.text for block in run if block.file or block.language in ("bash", "python"))

    def prose(self) -> str:
        """Without the blocks."""
        kept, fence = list[str](), ""
        for line in self.text.splitlines():
            if fence:
                fence = "" if line.strip() == fence else fence
            elif found := FENCE.match(line):
                fence = found[2]
            else:
                kept.append(line)
        return "\n".join(kept)

    def anchors(self) -> set[str]:
        """Of its headings, as GitHub makes them."""
        found = set[str]()
        for heading in re.findall(r"^#+ +(.+?) *$", self.prose(), re.MULTILINE):
            slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.+?)\]\(.+?\)", r"\1", heading).lower()).replace(" ", "-")
            number = next(n for n in range(99) if (f"{slug}-{n}" if n else slug) not in found)
            found.add(f"{slug}-{number}" if number else slug)
        return found | set(re.findall(r'<a (?:name|id)="([^"]+)"', self.text))

    def links(self) -> list[str]:
        """To other places than the web, pictures among them."""
        plain = re.sub(r"`[^`\n]*`", "", self.prose())
        found = re.findall(r"\]\(([^)\s]+)\)", plain) + re.findall(r'(?:src|srcset|href)="([^"]+)"', plain)
        return [link for link in found if not re.match(r"[a-z]+:", link)]


def pages() -> list[Page]:
    """All that is tested: README, CONTRIBUTING and docs/."""
    return [Page(ROOT / name) for name in ("README.md", "CONTRIBUTING.md")] + [
        Page(path) for path in sorted((ROOT / "docs").glob("*.md"))
    ]
