"""Small movies of "people", rectangles that wander: what they do is how they look, so that a small model learns it in a minute.

Three colours exclude each other, and a person is striped or not: five classes, of which each person does two; a sixth one
nobody does. Annotated, listed and detected as AVA's are.
"""

from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, FPS, SECONDS = 96, 80, 30, 7
ANNOTATED = {"train": range(902, 906), "val": range(903, 905)}  # seconds; a movie begins with second 900
COLOURS = ((230, 40, 40), (40, 210, 60), (60, 80, 240))
NAMES = {11: "red", 12: "green", 14: "blue", 17: "striped", 20: "plain", 80: "absent"}
COLOUR_IDS, STRIPED, PLAIN = (11, 12, 14), 17, 20


def write_scenes(folder: Path, train: int, val: int, seed: int = 0) -> list[str]:
    """Movies and annotations -> the options of `tubecell build-detection` for them."""
    movies, annotations = folder / "movies", folder / "annotations"
    movies.mkdir(parents=True)
    annotations.mkdir()
    random, truth, proposals = np.random.default_rng(seed), {"train": list[str](), "val": list[str]()}, list[str]()
    for split, number in (("train", train), ("val", val)):
        for movie in (f"{split}{n:02d}" for n in range(number)):
            people = [Person(random, k) for k in range(2)]
            write_movie(movies / f"{movie}.mp4", people, random)
            for second in ANNOTATED[split]:
                for k, person in enumerate(people):
                    box = person.box((second - 900) * FPS)
                    truth[split] += [f"{movie},{second:04d},{fractions(box)},{action},{k}" for action in person.actions]
                    near = box + random.uniform(-1.5, 1.5, 4)
                    proposals.append(f"{movie},{second:04d},{fractions(near)},{random.uniform(0.85, 1):.3f}")
                proposals.append(f"{movie},{second:04d},{fractions(np.array([2, 2, 30, 30]))},0.4")  # not sure enough
    for split, lines in truth.items():
        (annotations / f"ava_{split}_v2.2.csv").write_text("\n".join([*lines, ""]))
    listed = [f'label {{\n  name: "{name}"\n  label_id: {number}\n}}\n' for number, name in NAMES.items()]
    (annotations / "ava_action_list_v2.2.pbtxt").write_text("".join(listed))
    (folder / "proposals.csv").write_text("\n".join([*proposals, ""]))
    places = "--ava", str(movies), str(annotations)
    return [*places, "--trimmed", "--proposals", str(folder / "proposals.csv")]


class Person:
    """A rectangle that swings in its half of the picture."""

    def __init__(self, random: np.random.Generator, half: int) -> None:
        self.colour, self.striped = int(random.integers(3)), bool(random.integers(2))
        self.size = random.uniform((18, 28), (28, 44))
        low, high = np.array([4 + 46 * half, 4]), np.array([46 + 46 * half, HEIGHT - 4]) - self.size
        self.middle, self.reach = (low + high) / 2, np.maximum(high - low, 0) / 2
        self.rate, self.phase = random.uniform(0.02, 0.05, 2), random.uniform(0, 2 * np.pi, 2)

    @property
    def actions(self) -> tuple[int, int]:
        return COLOUR_IDS[self.colour], STRIPED if self.striped else PLAIN

    def box(self, frame: int) -> np.ndarray:
        """x1, y1, x2, y2 in pixels."""
        corner = self.middle + self.reach * np.sin(self.rate * frame + self.phase)
        return np.concatenate([corner, corner + self.size])

    def paint(self, picture: np.ndarray, frame: int) -> None:
        x1, y1, x2, y2 = self.box(frame).round().astype(int)
        picture[y1:y2, x1:x2] = COLOURS[self.colour]
        if self.striped:
            picture[y1:y2, x1:x2][np.arange(y2 - y1) // 5 % 2 == 1] = 15


def write_movie(file: Path, people: list[Person], random: np.random.Generator) -> None:
    grey = random.integers(70, 170) + 25 * np.sin(np.arange(WIDTH) / random.uniform(4, 12))[None, :, None]
    background = np.broadcast_to(grey, (HEIGHT, WIDTH, 3)).clip(0, 255).astype(np.uint8)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("h264", FPS, options={"crf": "18", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(SECONDS * FPS):
            picture = background.copy()
            for person in people:
                person.paint(picture, number)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def fractions(box: np.ndarray) -> str:
    return ",".join(f"{side:.4f}" for side in (box / [WIDTH, HEIGHT, WIDTH, HEIGHT]).clip(0, 1))
