"""Every command of README, CONTRIBUTING and docs/ runs: `make docs-test`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.blocks import Page, pages
from tests.docs.materials import Shelf
from tests.docs.sandbox import run_page
from tests.pipeline.s3_server import S3Server


@pytest.mark.slow
@pytest.mark.timeout(2400)  # materials are made within the first that want them
@pytest.mark.parametrize("page", pages(), ids=lambda page: page.path.stem)
def test_every_command_of(
    page: Page, shelf: Shelf, s3_session: S3Server, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    s3_session.empty()
    outcome = run_page(page, tmp_path / "page", shelf)
    record_property(f"docs-test {page.name}", f"{len(outcome.exempt)}|{outcome.report()}")
    if outcome.fault:
        pytest.fail(outcome.fault, pytrace=False)
