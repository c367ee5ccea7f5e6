"""Processes that work side by side as the loader's do: fresh interpreters, without what has been done to this one."""

import subprocess
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from pipeline.children import start


class Crew:
    """`members` are the connections to them."""

    def __init__(self, size: int, function: Callable[..., None], *arguments: Any) -> None:
        """`function(connection, *arguments)` is what each does; its module is imported there. OpenMP has one thread."""
        self.members: list[Connection] = []
        self._processes: list[subprocess.Popen] = []
        for _ in range(size):
            process, connection = start(main, mortal=False)
            self._processes.append(process)
            self.members.append(connection)
        self.tell_all((function, arguments))

    def tell_all(self, message: object) -> None:
        """Without waiting for an answer."""
        for member in self.members:
            member.send(message)

    def answers(self, number: int | None = None) -> list[Any]:
        """One of each, or of so many. Raises what is an exception, and EOFError if one has failed; it has said why."""
        answers = [member.recv() for member in self.members[:number]]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def close(self) -> None:
        """They leave when they are done with what they were told."""
        for member in self.members:
            member.close()
        for process in self._processes:
            process.wait()


def main(connection: Connection) -> None:
    """A member."""
    function, arguments = connection.recv()
    function(connection, *arguments)
