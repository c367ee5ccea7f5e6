"""The sandbox of the pages, and what `make docs-test` prints in the end."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import MOST_EXEMPT, ROOT
from tests.docs.materials import Shelf
from tests.docs.sandbox import environment_of
from tests.docs.smaller import MODEL
from tests.pipeline.s3_server import S3Server


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory, s3_session: S3Server) -> Iterator[Shelf]:
    """Materials, which all processes of this test run share, and a server of commands, which is this one's. Its commands find
    s3://bucket."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    address = base / "commands"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("command_server.py")), str(address)],
        env=environment,
        stdin=subprocess.PIPE,
    )
    while not address.exists():
        assert server.poll() is None, "the server of commands ended"
        try:
            server.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    yield Shelf(shared / "docs-materials", environment_of(base, address))
    assert server.stdin
    server.stdin.close()
    server.wait()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    told = {
        name: text
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
        for name, text in report.user_properties
        if name.startswith("docs-test ")
    }
    if not told:
        return
    terminalreporter.section("commands of the pages")
    exempt = 0
    for _, text in sorted(told.items()):
        number, _, said = text.partition("|")
        exempt += int(number)
        terminalreporter.write_line(said)
    terminalreporter.write_line(f"$SMALL is {MODEL}")
    terminalreporter.write_line(f"exempt over all: {exempt}, of at most {MOST_EXEMPT}")
