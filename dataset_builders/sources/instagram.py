"""A folder of videos from Instagram, of which the paper takes 250,000 at random: "the average duration is 34 seconds" (C.1).

The paper's own collection is private, so this is the reader's: plain folders of any layout, or what the downloader Instaloader
writes: `PROFILE/2020-01-31_12-00-00_UTC.mp4`, with the post's metadata in `2020-01-31_12-00-00_UTC.json.xz` (or `.json`),
its caption in `.txt`, pictures and the videos' thumbnails in `.jpg` (`.webp`, `.heic`). The parts of a post with several are
`..._UTC_1.mp4`, `..._UTC_2.jpg` beside one `..._UTC.json.xz`. The same post can lie in several folders (a profile's, a
hashtag's); its shortcode, the ABC of instagram.com/p/ABC, tells.
"""

import json
import lzma
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataset_builders.plan import Drop, SourcePlan, requests_table
from dataset_builders.sources.annotations import AnyPath
from dataset_builders.sources.choice import check_number, ranks
from dataset_builders.sources.folder import own_folder
from dataset_builders.sources.listing import count_reasons, dropped_files, existing_folder, list_videos
from pipeline.progress import Progress

NUMBER = 250_000
SAMPLING = "stride:4"
PICTURES = (b".jpg", b".jpeg", b".png", b".webp", b".heic")
METADATA = (b".json", b".json.xz", b".txt", b".ini")
MAX_METADATA = 16 << 20  # bytes of a post's JSON, unpacked; real ones have some 10 KB
MAX_UNPACKING = 128 << 20  # bytes of memory for it: a hostile file can ask for gigabytes


@dataclass(frozen=True, slots=True)
class Post:
    """What a video's metadata say."""

    shortcode: str | None = None
    part: int = 0  # place in a post of several, from 1
    seconds: float | None = None


def plan(
    name: str,
    *,
    folder: AnyPath,
    number: int | None = NUMBER,
    seed: int = 0,
    labels_from_folder: bool = False,
    sampling: str = SAMPLING,
) -> SourcePlan:
    """`number` of the videos in `folder` (None: all), in the order of their paths. There are no annotations; with
    `labels_from_folder` a video's own folder, a profile's or a hashtag's, names its class.

    Chosen by seed and path relative to the folder (see choice.py). Every file counts as a video but for pictures and
    metadata, by their extensions; what is none after all is rejected when it is read. A video of a post that is chosen
    already is a duplicate, and the next one takes its place. `source_id` is the shortcode, where readable metadata lie
    beside the video. Raises ValueError if there is no folder or `number` is below 1.
    """
    check_number(name, number)
    root = existing_folder(folder)
    everything = list_videos(root).paths
    videos = [path for path in everything if not path.lower().endswith(PICTURES + METADATA)]
    pictures = sum(path.lower().endswith(PICTURES) for path in everything)
    metadata = {path for path in everything if path.endswith((b".json", b".json.xz"))}
    posts, repeated = _choose(root, videos, metadata, len(videos) if number is None else number, seed)
    places = sorted(posts)
    columns = {
        "path": [videos[place] for place in places],
        "label": [own_folder(videos[place]) if labels_from_folder else None for place in places],
        "source_id": [posts[place].shortcode for place in places],
        "seconds": [posts[place].seconds for place in places],
    }
    same = {"source": name, "root": name, "kind": "video", "split": "train", "sampling": sampling}
    requests = requests_table(columns | same)
    others = sorted(repeated)
    dropped = dropped_files(name, [videos[place] for place in others], Drop.DUPLICATE, [repeated[place] for place in others])
    counts = {
        "found": len(videos),
        "chosen": len(places),
        str(Drop.NOT_CHOSEN): len(videos) - len(places) - len(repeated),
        **count_reasons([dropped]),
        "pictures": pictures,
        "metadata files": len(everything) - len(videos) - pictures,
        "with a shortcode": sum(post.shortcode is not None for post in posts.values()),
    }
    notes = []
    if number is not None and len(places) < number:
        notes.append(f"{name}: {number:,} videos were asked for and {len(places):,} are there: {number - len(places):,} fewer")
    return SourcePlan(requests=requests, dropped=dropped, counts=counts, notes=tuple(notes))


def _choose(
    root: bytes, videos: list[bytes], metadata: set[bytes], number: int, seed: int
) -> tuple[dict[int, Post], dict[int, str]]:
    """-> (chosen places with what is known of them, places of duplicates with the detail).

    Metadata are read of those that are about to be chosen, not of all.
    """
    chosen: dict[int, Post] = {}
    repeated: dict[int, str] = {}
    first_place: dict[tuple[str, int], int] = {}
    order = iter(np.argsort(ranks(videos, seed), kind="stable").tolist())
    with ThreadPoolExecutor(16) as pool, Progress(total=min(number, len(videos)), unit="file", desc="metadata") as bar:
        while batch := [place for _, place in zip(range(min(number - len(chosen), 4096)), order, strict=False)]:
            posts = pool.map(lambda place: read_post(root, videos[place], metadata), batch)
            for place, post in zip(batch, posts, strict=True):
                if post.shortcode is not None:
                    first = first_place.setdefault((post.shortcode, post.part), place)
                    if first != place:
                        same = videos[first].decode("utf-8", "backslashreplace")
                        repeated[place] = f"the video of post {post.shortcode} that {same} is"
                        continue
                chosen[place] = post
                bar.update()
    return chosen, repeated


def read_post(root: bytes, video: bytes, metadata: set[bytes]) -> Post:
    """What the metadata beside a video say; nothing if there are none or they cannot be read (JSON is all that is)."""
    base = os.path.splitext(video)[0]
    part = re.fullmatch(rb"(?s)(.*)_(\d{1,3})", base)
    candidates = [(base, 0), (part[1], int(part[2]))] if part else [(base, 0)]
    for stem, index in candidates:
        for extension in (b".json.xz", b".json"):
            if stem + extension in metadata:
                node = _read_node(os.path.join(root, stem + extension))
                shortcode = node.get("shortcode", node.get("code"))
                if not isinstance(shortcode, str) or not re.fullmatch(r"[A-Za-z0-9_-]{5,64}", shortcode):
                    return Post()
                seconds = node.get("video_duration")
                if index or not isinstance(seconds, int | float) or not 0 < seconds < 1e6:
                    seconds = None  # the post's, not the part's
                return Post(shortcode, index, seconds)
    return Post()


def _read_node(file: bytes) -> dict[str, Any]:
    """The post in a file that Instaloader wrote: {"instaloader": {...}, "node": {"shortcode": ...}}."""
    try:
        with open(file, "rb") as opened:
            text = opened.read(MAX_METADATA)
        if file.endswith(b".xz"):
            text = lzma.LZMADecompressor(memlimit=MAX_UNPACKING).decompress(text, MAX_METADATA)
        content = json.loads(text)
    except (OSError, EOFError, lzma.LZMAError, ValueError, RecursionError):
        return {}
    node = content.get("node") if isinstance(content, dict) else None
    return node if isinstance(node, dict) else {}
