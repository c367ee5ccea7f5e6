"""A folder in which a page's commands run, one after the other, as a reader would type them; and what came of it."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.blocks import ROOT, Block, Page
from tests.docs.command_server import write_commands
from tests.docs.materials import Shelf, of_name
from tests.docs.smaller import IN_PYTHON, MODEL, smaller

WORD = re.compile(r"(?<![\w./:{-])[A-Za-z][\w.-]*[\w]")  # that may be a place: not a part of a longer path
LONGEST = 1500.0  # seconds of a page
LAST_LINES = 60


@dataclass(slots=True)
class Command:
    """What a page has, and what is run."""

    written: str
    run: str
    file: str | None = None
    """It is written to, instead."""

    @property
    def as_it_stands(self) -> bool:
        return self.written == self.run


@dataclass(slots=True)
class Outcome:
    """Of a page."""

    page: str
    stand: int = 0
    changed: list[Command] = field(default_factory=list)
    files: int = 0
    exempt: list[Block] = field(default_factory=list)
    seconds: float = 0.0
    fault: str = ""

    def report(self) -> str:
        counts = f"{self.stand} as they stand, {len(self.changed)} smaller, {len(self.exempt)} exempt"
        lines = [f"{self.page}: {counts}; {self.seconds:.0f} s"]
        for each in self.changed:
            lines += [f"    smaller: {one_line(each.written)}", f"         as: {one_line(each.run).replace(MODEL, '$SMALL')}"]
        lines += [f"    exempt:  line {block.line}: {block.exempt}" for block in self.exempt]
        return "\n".join(lines)


def one_line(text: str) -> str:
    return text if text.count("\n") == 0 else f"{text.splitlines()[0]} ... ({text.count(chr(10)) + 1} lines)"


def environment_of(folder: Path, server: Path) -> dict[str, str]:
    """For commands: ours first; nothing of a user's settings."""
    if not (folder / "bin").exists():
        write_commands(folder / "bin", server)
    (folder / "home").mkdir(exist_ok=True)
    kept = {
        name: value for name, value in os.environ.items() if name in ("LANG", "LC_ALL", "TMPDIR") or name.startswith("AWS_")
    }
    path = f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    paths = {"PATH": path, "PYTHONPATH": str(ROOT), "COMMANDS": str(folder / "bin"), "CHECKOUT": str(ROOT)}
    slurm = {"SLURM_ARRAY_TASK_ID": "1", "NODE0": "localhost"}
    return {**kept, **paths, **slurm, "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}


def commands_of(page: Page) -> Iterator[Command]:
    """In order."""
    for number, block in enumerate(page.blocks()):
        if block.exempt:
            continue
        if block.file:
            yield Command(block.text, block.text, block.file)
        elif block.language == "bash":
            for command in block.commands():
                yield Command(command, smaller(command))
        elif block.language == "python":
            made = smaller(block.text, IN_PYTHON) + "\n"
            yield Command(block.text, made, f"block-{number}.py")
            if made == block.text:
                yield Command(f"python block-{number}.py", f"python block-{number}.py")
            else:
                changed = [
                    f"{a.strip()} -> {b.strip()}"
                    for a, b in zip(block.text.splitlines(), made.splitlines(), strict=True)
                    if a != b
                ]
                yield Command(f"python: {'; '.join(changed)}", f"python block-{number}.py")


def places_of(page: Page) -> list[str]:
    """The materials that a page names before it makes them."""
    code, found = page.code(), list[str]()
    for name in dict.fromkeys(WORD.findall(code)):
        if not of_name(name):
            continue
        first = re.search(rf"(?<![\w./:{{-]){re.escape(name)}\b", code)
        made = first and re.search(r"(?:--out|--consolidate|>|mkdir(?: -p)?|cd) *$|^# $|\bout = \"$", code[: first.start()])
        if not made:
            found.append(name)
    return found


def run_page(page: Page, folder: Path, shelf: Shelf) -> Outcome:
    """Its commands in a folder of its own, until one fails."""
    outcome, began = Outcome(page.name), time.monotonic()
    outcome.exempt = [block for block in page.blocks() if block.exempt]
    commands = list(commands_of(page))
    if not any(command.file is None for command in commands):
        return outcome
    folder.mkdir()
    for name in places_of(page):
        made = shelf.get(name)
        (shutil.copytree if made.is_dir() else shutil.copyfile)(made, folder / name)
    for name in ("train", "examples", "benchmarks", "dataset_builders"):  # of the checkout
        if re.search(rf"(?<![\w./]){name}/", page.code()):
            (folder / name).symlink_to(ROOT / name)
    script = folder.with_suffix(".sh")
    script.write_text(script_of(commands, folder))
    log, steps = folder.with_suffix(".log"), folder.with_suffix(".steps")
    with log.open("w") as out, steps.open("w") as done:
        process = subprocess.Popen(
            ["bash", "-c", f"exec 9>&1 >&2; source {script}"],
            cwd=folder,
            env=shelf.environment,
            stdin=subprocess.DEVNULL,
            stdout=done,
            stderr=out,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            status = None
            os.killpg(process.pid, 9)
            process.wait()
    outcome.seconds = time.monotonic() - began
    last = len(steps.read_text().splitlines()) - 1
    if status != 0:
        said = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        how = f"ended with {status}" if status is not None else f"took longer than {LONGEST:g} s"
        outcome.fault = f"{page.name}: a command {how}\n$ {commands[last].run}\n{said}"
    tried = [command for command in commands if command.file is None]
    outcome.changed = [command for command in tried if not command.as_it_stands]
    outcome.stand = len(tried) - len(outcome.changed)
    outcome.files = len(commands) - len(tried)
    return outcome


def script_of(commands: list[Command], folder: Path) -> str:
    """Each command in the same shell, so that variables and `cd` last; descriptor 9 is told of each before it begins."""
    lines = ["set -o pipefail"]
    for number, command in enumerate(commands):
        lines.append(f'echo {number} "$EPOCHREALTIME" >&9')
        if command.file:
            kept = folder.with_name(f"{folder.name}-{number}")
            kept.write_text(command.run)
            lines.append(f"cp {kept} {command.file} || exit")
        else:
            lines.append(f"cat <<'END-OF-COMMAND'\n$ {command.run}\nEND-OF-COMMAND")
            lines.append(f"{{ {command.run}\n}} 9>&- || exit")
    return "\n".join(lines) + "\n"
