"""A run's checkpoints as files: their names, their checksums, which of them are whole.

    RUN/checkpoints/step-00000500/   __0_0.distcp ...   tensors, a file of each rank that wrote
                                     .metadata          which part of which tensor lies where
                                     progress.json      where the run and its data stand
                                     config.json        what the run was asked for
                                     descent.json, label_map.json      what it began with, its classes: if there are any
                                     checksums.json     size and XXH3 (128 bits) of each of these; written last
                    step-00001000/
                    .writing-...     being written, or left by a run that was killed; never read
                    .deleting-...    on its way out
                    damaged-step-... set aside when a run found it damaged and went on from the one before

Only a run itself, which holds its folder's lock, gives a checkpoint its final name; whatever has one has been whole.
"""

import hashlib
import json
import shutil
from pathlib import Path

import xxhash

from pipeline.storage.files import sync_directory

PREFIX = "step-"
CHECKSUMS = "checksums.json"
PROGRESS = "progress.json"
CONFIG = "config.json"


def name_of(step: int) -> str:
    """500 -> "step-00000500": by name is by step."""
    return f"{PREFIX}{step:08d}"


def step_of(checkpoint: str | Path) -> int:
    """The step of a checkpoint's name or path."""
    return int(Path(checkpoint).name.removeprefix(PREFIX))


def listed(folder: Path) -> list[Path]:
    """The checkpoints of a `checkpoints` folder, oldest first."""
    return sorted(folder.glob(f"{PREFIX}*"))


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a run's `checkpoints` folder, or None."""
    return max(listed(folder), default=None)


def surplus(names: list[str], keep_last: int, keep_every: int | None) -> list[str]:
    """Those of the names (oldest first) that are neither among the last `keep_last` nor of a step that `keep_every` divides."""
    return [name for name in names[:-keep_last] if not keep_every or step_of(name) % keep_every]


def clean_up(folder: Path) -> None:
    """Remove what killed runs left behind; only whoever holds the run's lock may call it.

    What cannot be removed, because a writer on another node still writes to it, stays and harms nobody.
    """
    for leftover in [*folder.glob(".writing-*"), *folder.glob(".deleting-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def checksum(file: Path) -> dict[str, int | str]:
    """Size in bytes and hash of a file. Raises OSError."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, xxhash.xxh3_128)
        return {"size": stream.tell(), "xxh3": digest.hexdigest()}


def damage(checkpoint: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint, or None: every file is there, of its size, with its hash.

    Reads every byte once, so that ranks may share: of `parts` this checks every one's `part`-th file.
    """
    try:
        checksums = json.loads((checkpoint / CHECKSUMS).read_text())
        for name in sorted(checksums)[part::parts]:
            found = (checkpoint / name).stat().st_size
            if found != checksums[name]["size"]:
                return f"{name} has {found} bytes instead of {checksums[name]['size']}"
            if checksum(checkpoint / name) != checksums[name]:
                return f"the bytes of {name} are not those that were written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(error.filename or checkpoint).name} cannot be read: {error.strerror or error}"
    except ValueError:
        return f"{CHECKSUMS} is cut off or garbled"
    return None


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that its step can be saved anew. Raises OSError."""
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
    if aside.exists():
        shutil.rmtree(aside)
    checkpoint.rename(aside)
    sync_directory(checkpoint.parent)
    return aside
