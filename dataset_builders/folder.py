"""A folder of any files: which ones there are, and under which key each goes into the dataset."""

import hashlib
import os
import re
import unicodedata


def list_files(root: bytes, exclude: bytes | None = None) -> list[bytes]:
    """Every regular file below `root`, as paths relative to it, in the order of their bytes.

    Names and extensions decide nothing: hidden files, files without extension and names that are not UTF-8 count. Links
    to files count under their own name. Every real directory is entered once, which also ends loops of links. Broken
    links and directories that cannot be read are listed too, so that they end as rejects instead of being passed over;
    sockets, pipes and devices are not. `exclude` is a directory to leave out: the dataset, if it lies within the folder.
    """
    entered = set()
    if exclude is not None and os.path.isdir(exclude):
        status = os.stat(exclude)
        entered.add((status.st_dev, status.st_ino))
    files: list[bytes] = []
    directories = [b""]
    while directories:
        directory = directories.pop()
        try:
            status = os.stat(os.path.join(root, directory))
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(os.path.join(root, directory)), key=lambda entry: entry.name)
        except OSError:
            files.append(directory or b".")
            continue
        below = []
        for entry in entries:
            path = os.path.join(directory, entry.name)
            try:
                if entry.is_dir():
                    below.append(path)
                elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
                    files.append(path)
            except OSError:  # a link that leads round in a circle
                files.append(path)
        directories.extend(reversed(below))  # sorted, because which of two links to one directory is entered must not vary
    return sorted(files)


def clip_key(source: str, path: bytes) -> str:
    """A WebDataset key: ASCII, without dots or slashes, the same on every machine and wherever the folder lies.

    A readable piece of the file's name (at most 60 characters) and 10 hexadecimal digits of the hash of source and
    relative path: among a million files of one and the same name, two share a key with a probability of about 0.4, among
    files of different names practically never; `write_manifest` would refuse them.
    """
    stem = os.path.splitext(os.path.basename(path))[0].decode("utf-8", "replace")
    ascii_stem = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", ascii_stem)[:60].strip("-")
    digest = hashlib.blake2b(source.encode() + b"\0" + path, digest_size=5).hexdigest()
    return f"{slug}-{digest}" if slug else digest
