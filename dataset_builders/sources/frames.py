"""Folders of frames: videos that were taken apart into images, `img_00001.jpg`, `image_000001.jpg`, `i_0001.jpg`, `1.png` ...

Their order is that of image_names.py; numbers may begin anywhere and have gaps. What the frame rate was, no file says.
"""

import os

from dataset_builders.media.image_names import IMAGES, image_names, image_number
from dataset_builders.plan import Drop, SourcePlan, requests_table
from dataset_builders.sources.annotations import AnyPath, is_text
from dataset_builders.sources.folder import mixed_splits, walk
from dataset_builders.sources.listing import VIDEOS, count_reasons, dropped_files, existing_folder
from pipeline.progress import Progress

SAMPLING = "seconds:0.133333"


def check_rate(name: str, rate: float) -> None:
    """Raises ValueError for an impossible frame rate."""
    if not 0 < rate <= 1000:
        raise ValueError(f"source {name}: frames at rate {rate:g}; it must be above 0 and at most 1000 frames per second")


def plan(
    name: str, *, folder: AnyPath, rate: float, split: str = "train", labels_from_folder: bool = False, sampling: str = SAMPLING
) -> SourcePlan:
    """Every folder below `folder` that holds images and no video is a clip, in the order of their paths.

    `rate` is what they were extracted at, in frames per second. With `labels_from_folder` the folder above names the class:
    `ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01/i_0001.jpg`. Raises ValueError if there is no folder, or for an impossible rate.
    """
    check_rate(name, rate)
    found: list[tuple[bytes, int]] = []
    gaps = passed_over = 0
    others: list[tuple[bytes, str]] = []
    for parent, _, names in Progress(walk(existing_folder(folder)), desc=name, unit="folder"):
        images = image_names(names)
        num_videos = sum(file.lower().endswith(VIDEOS) for file in names)
        if images and num_videos:
            others.append((parent or b".", f"its {len(images)} images lie beside {num_videos} videos, and are no frames"))
        elif images:
            found.append((parent or b".", len(images)))
            first, last = image_number(images[0]), image_number(images[-1])
            gaps += first is not None and last is not None and last - first + 1 != len(images)
        taken = set(images)
        for file in names:
            if file.lower().endswith(IMAGES):
                passed_over += file not in taken
            else:
                others.append((os.path.join(parent, file), "is no image"))
    found.sort()
    others.sort()
    columns = {
        "path": [path for path, _ in found],
        "label": [_class_name(path) if labels_from_folder else None for path, _ in found],
        "seconds": [num_images / rate for _, num_images in found],
    }
    same = {"source": name, "root": name, "kind": "frames", "split": split, "rate": float(rate), "sampling": sampling}
    requests = requests_table(columns | same)
    dropped = dropped_files(name, [path for path, _ in others], Drop.NOT_LISTED, [detail for _, detail in others])
    counts = {"found": len(found), "images": sum(num_images for _, num_images in found), **count_reasons([dropped])}
    counts |= {"with gaps in their numbers": gaps, "images passed over": passed_over}
    notes = mixed_splits(name, [path for path, _ in found], split)
    return SourcePlan(requests=requests, dropped=dropped, counts=counts, notes=notes)


def _class_name(path: bytes) -> str | None:
    """The name of the folder above; None without one, or if it is no text."""
    label = os.path.basename(os.path.dirname(path)).decode("utf-8", "surrogateescape")
    return label if is_text(label) else None
