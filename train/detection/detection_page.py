"""The page of detections that were scored: figures, classes, and frames with the boxes of people drawn in."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.report.page import render
from pipeline.sampling import SamplingRecipe
from pipeline.sampling.crops import whole_frame_size
from pipeline.storage.key_frames import KeyFrames, stamp
from train.accuracy.accuracy_page import jpeg
from train.accuracy.examples import views_of
from train.detection.mean_precision import Rows, best_scores

WORST, OTHERS = 8, 4  # frames with a picture: those whose actions were found least, and some at equal distances
ACTIONS = 3  # of a detection, the likeliest
SHOWN_BOXES = 12  # detections of a frame, the surest
SHORT, LONG = 240, 480  # pixels of a picture
TRUE, SEEN = (80, 220, 100), (255, 170, 40)
Box = tuple[float, float, float, float]


def page(found: Mapping[str, Any], frames: Sequence[Mapping[str, Any]] = ()) -> str:
    """What evaluation.json holds, and `frames_with_boxes` -> self-contained HTML without scripts."""
    known = [each for each in found["classes"] if each["ap"] is not None]
    return render(
        Path(__file__).with_name("detection_page.html"),
        "detection",
        found["name"],
        f"on {found['of']}, {time.strftime('%Y-%m-%d %H:%M')}",
        found=found,
        classes=sorted(known, key=lambda each: (-each["ap"], -each["annotated"])),
        without=[each["name"] for each in found["classes"] if each["ap"] is None],
        frames=frames,
    )


def frames_with_boxes(
    frames: KeyFrames, rows: np.ndarray, truth: Rows, found: Rows, names: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Of the key frames at these rows: the ones whose true actions got the lowest scores, then some at equal distances; each
    with its picture, a JPEG in base64, and who is seen to do what."""
    truth, found = truth.sorted(), found.sorted()
    chosen = chosen_rows(rows, truth, found)
    frames_of = pictures(frames, chosen)
    told = []
    for row, score in chosen.items():
        true, seen = people(truth, row), people(found, row)[:SHOWN_BOXES]
        movie = frames.movies[frames.movie[row]]
        place = frames.place[row]
        picture = None if row not in frames_of else jpeg(drawn(frames_of[row], place, true, seen))
        told.append(
            {
                "frame": f"{movie}, {stamp(frames.second[row])}",
                "picture": picture,
                "score": score,
                "truth": [", ".join(names.get(number, str(number)) for number, _ in actions) for _, actions in true],
                "found": [
                    ", ".join(f"{names.get(number, number)} {each:.0%}" for number, each in actions[:ACTIONS])
                    for _, actions in seen
                ],
            }
        )
    return told


def chosen_rows(rows: np.ndarray, truth: Rows, found: Rows) -> dict[int, float]:
    """Row -> the mean of the scores that its true actions got, 0 where nobody was seen to do them."""
    scores = np.zeros(len(truth))
    for number in np.unique(truth.actions):
        of = truth.actions == number
        scores[of] = best_scores(truth.of(of), found.of(found.actions == number))
    images, place = np.unique(truth.images, return_inverse=True)
    if not len(images):
        return {}
    means = np.bincount(place, scores) / np.bincount(place)
    worst = np.argsort(means, kind="stable")[:WORST]
    spread = np.linspace(0, len(images) - 1, OTHERS).astype(int)
    return {int(images[each]): float(means[each]) for each in dict.fromkeys([*worst.tolist(), *spread.tolist()])}


def people(rows: Rows, image: int) -> list[tuple[Box, list[tuple[int, float]]]]:
    """Of an image, rows by image: each box with its actions, the likeliest first; the surest box first."""
    some = rows.of(slice(*np.searchsorted(rows.images, [image, image + 1])))  # type: ignore[arg-type]
    found: dict[Box, list[tuple[int, float]]] = {}
    for corners, number, score in zip(some.corners.tolist(), some.actions.tolist(), some.scores.tolist(), strict=True):
        found.setdefault(tuple(corners), []).append((number, score))
    boxes = [(box, sorted(actions, key=lambda action: -action[1])) for box, actions in found.items()]
    return sorted(boxes, key=lambda each: -each[1][0][1])


def pictures(frames: KeyFrames, rows: Mapping[int, Any]) -> dict[int, np.ndarray]:
    """By row, the key frame itself."""
    manifest, sizes = frames.manifest, dict[tuple[int, int], list[int]]()
    for row in rows:
        size = whole_frame_size(int(manifest.width[row]), int(manifest.height[row]), SHORT, LONG, 2)
        sizes.setdefault(size, []).append(row)
    found: dict[int, np.ndarray] = {}
    for size, some in sizes.items():
        recipe = SamplingRecipe(
            views_per_step=1,
            views_per_clip=1,
            split="all",
            num_frames=1,
            input_size=size,
            temporal="key_frame",
            sampling="stride:1",
            crop="none",
            masks=None,
        )
        found |= {row: view[0] for row, view in views_of(manifest, some, recipe).items()}
    return found


def drawn(
    pixels: np.ndarray,
    place: np.ndarray,
    true: Sequence[tuple[Box, Any]],
    seen: Sequence[tuple[Box, Any]],
) -> np.ndarray:
    """A key frame, uint8 (height, width, 3), of which `place` (4,) says what of the movie's frame it shows, with boxes in:
    those annotated with a letter, those detected with a number."""
    height, width = pixels.shape[:2]
    picture = Image.fromarray(pixels)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=13)
    low, sides = np.tile(place[:2], 2), np.tile(place[2:] - place[:2], 2)
    for boxes, colour, tag, line in ((true, TRUE, lambda n: chr(97 + n % 26), 3), (seen, SEEN, lambda n: str(n + 1), 2)):
        for number, (box, _) in enumerate(boxes):
            x0, y0, x1, y1 = ((np.array(box) - low) / sides * np.tile([width - 1, height - 1], 2)).tolist()
            pen.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=line)
            corner = (x0 + 4, y0 + 3) if colour == TRUE else (max(x0, x1) - 14, y0 + 3)
            pen.text(corner, tag(number), fill=colour, font=font, stroke_width=2, stroke_fill=(0, 0, 0))
    return np.asarray(picture)
