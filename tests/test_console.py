"""Commands where nobody can hear them: closed streams, and a locale that knows ASCII only."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataset_builders import build_dataset
from dataset_builders.checking import recheck
from pipeline.console import open_streams
from pipeline.storage.manifest_writer import write_manifest

ROOT = Path(__file__).resolve().parent.parent
ASCII = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
COMMAND = """
import os, sys
from pathlib import Path
from pipeline.console import complain, prepare
prepare()
out = Path(sys.argv[1])
with open(out / "first", "w") as first:
    os.write(2, b"what a library prints\\n")
    first.write(str(first.fileno() > 2))
print("·", os.fsdecode(b"\\xff"))
complain("² × \\udcff")
(out / "ü").write_text("·")
"""


def say(command: list[str], redirection: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    line = ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, *command]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(line, env=settings, capture_output=True, check=False)


@pytest.mark.parametrize("redirection", ["", "2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_lead_to_nowhere(tmp_path: Path, redirection: str) -> None:
    done = say(["-c", COMMAND, str(tmp_path)], redirection)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "first").read_text() == "True", "no file takes the number of a closed stream"
    assert (b"\xc2\xb7 \\udcff" in done.stdout) == (">&- 2" not in redirection and redirection != ">&-")


def test_in_an_ascii_locale_commands_begin_anew_in_utf_8(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    done = say([str(tmp_path / "command.py"), str(tmp_path)], **ASCII)
    assert done.returncode == 0, done.stderr
    assert "·".encode() in done.stdout and "² ×".encode() in done.stderr
    assert (tmp_path / "ü").read_text(encoding="utf-8") == "·"
    done = say(["-X", "utf8=0", str(tmp_path / "command.py"), str(tmp_path)], **ASCII)
    assert b"UnicodeEncodeError" in done.stderr, "asked for on the command line itself: no going round in circles"


def test_what_a_stream_cannot_encode_is_escaped(tmp_path: Path) -> None:
    done = say(["-c", COMMAND, str(tmp_path)], PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"\\xb7 \\udcff\n" and b"\\xb2 \\xd7 \\udcff" in done.stderr


@pytest.mark.parametrize("redirection", [">/dev/full", "| true", "| head -c 9", ">&-"])
def test_a_result_that_cannot_be_printed_is_an_error(redirection: str) -> None:
    """But for a reader who has gone, or never was."""
    text = "from pipeline.console import check_printed, prepare\nprepare()\nprint('x' * 10**6)\ncheck_printed()\nprint('·')"
    line = f'{sys.executable} -c "{text}" {redirection}; exit $PIPESTATUS'
    done = subprocess.run(["bash", "-c", line], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == (1 if redirection == ">/dev/full" else 0), done.stderr
    assert ("ValueError: what was printed could not all be written: No space left on device" in done.stderr) == done.returncode


@pytest.mark.parametrize(
    "command", [["--plan", "--folder", "own=folder", "--out", "out"], ["folder", "--no-decode", "--workers", "1"]]
)
def test_a_plan_or_findings_that_cannot_be_printed(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    write_manifest(tmp_path / "folder", [])
    monkeypatch.chdir(tmp_path)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        open_streams()
        assert (build_dataset.main if "--plan" in command else recheck.main)(command) == 2
    assert capsys.readouterr().err == "error: what was printed could not all be written: No space left on device\n"
    assert not (tmp_path / "out").exists()


def entries() -> list[Path]:
    packages = ("benchmarks", "dataset_builders", "train")
    files = [ROOT / "quickstart.py", *(file for package in packages for file in sorted((ROOT / package).rglob("*.py")))]
    return [file for file in files if '\nif __name__ == "__main__":' in file.read_text(encoding="utf-8")]


def test_every_command_prepares_before_it_loads_anything_else() -> None:
    assert len(entries()) > 20
    for file in entries():
        prepared = False
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.If) and "prepare()" in ast.unparse(node):
                prepared = True
            heavy = isinstance(node, ast.Import | ast.ImportFrom) and ast.unparse(node) not in (
                "import sys",
                "from pathlib import Path",
            )
            assert prepared or not heavy or file.name == "quickstart.py", f"{file}: {ast.unparse(node)} before prepare()"
        assert prepared, file
