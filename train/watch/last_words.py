"""What torchrun says last, in place of an exit status: the message of a rank's fault, without a traceback where a user can mend
it."""

import json
import os
import time
from pathlib import Path

from pipeline.console import may_fail


def leave_last_words(text: str) -> None:
    """For a process that torchrun started: the cause that it names when it gives up (torchelastic's error file)."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        words = {"message": {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with may_fail(file):
            Path(file).write_text(json.dumps(words))
