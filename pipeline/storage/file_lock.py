"""Locks on files, for as long as they are open, on file systems that have them.

Some have none: NFS without its lock daemon, Lustre mounted without -o flock, some of FUSE. What is locked here is protected
against a second command, not against anything that one command does, so work goes on there, and says so.
"""

import errno
import fcntl
import os
from pathlib import Path
from typing import IO, Any

from pipeline.console import complain

ENOTSUPP = 524  # the kernel's own, which escapes from some NFS servers
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, ENOTSUPP}

_told: set[int] = set()  # file systems


def lock(file: IO[Any], *, shared: bool = False, wait: bool = False) -> None:
    """Take the lock of an open file. Where the file system has no locks, say so once and go on without.

    Raises BlockingIOError if another process has it, unless it is waited for; OSError, which names the file, for the rest.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise OSError(error.errno, f"cannot be locked: {error.strerror}", file.name) from error
        device = os.fstat(file.fileno()).st_dev
        if device not in _told:
            _told.add(device)
            complain(
                f"warning: the file system of {file.name} has no locks ({error.strerror}); going on without, so see to it that "
                f"no other command writes to {Path(file.name).absolute().parent} meanwhile"
            )
