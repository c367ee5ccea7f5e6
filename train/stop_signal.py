"""How a run is asked to stop."""

import signal
from types import FrameType


class StopSignal:
    """SIGTERM, SIGUSR1 and Ctrl-C ask the run to save and stop after the step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested, self.name = False, ""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.requested, self.name = True, signal.Signals(number).name
