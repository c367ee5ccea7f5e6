"""People in the key frames of a finished dataset, found by a detector of torchvision with weights that the user has.

It sees the frames as the dataset has them, of a short side of 256 pixels by default, which torchvision enlarges to 800. FAIR's
detector, whose boxes the published figures are of, was trained on AVA's own boxes; one that was trained on COCO alone finds
fewer people: compare by recall before you compare mAP.
"""

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataset_builders.detection.proposals import Detection
from pipeline.console import complain
from pipeline.decoding.decode import DecodeError, decode_frames
from pipeline.storage.manifest import Manifest
from pipeline.storage.shards import ShardReader

PERSON = 1  # COCO's label, which is that of torchvision's weights
LOWEST = 0.05  # score from which on a box is written down
BATCH = 8  # frames at once


class PersonDetector:
    """A model of torchvision.models.detection."""

    def __init__(self, name: str, weights: Path, device: str | None = None) -> None:
        """`weights` are a state dict (.pth or .safetensors), as torchvision publishes them for that model. Raises ValueError
        for a model that does not exist, or weights that are not its own."""
        import torch
        from torchvision import models

        known = models.list_models(module=models.detection)
        if name not in known:
            raise ValueError(f"--detector {name!r} is none of torchvision's: {', '.join(known)}")
        if not weights.is_file():
            raise ValueError(f"--detector-weights {weights}: there is no such file; it is not downloaded")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        state = _state_of(weights)
        try:
            self.model = models.get_model(name, weights=None, weights_backbone=None)
            self.model.load_state_dict(state)
        except (RuntimeError, AttributeError, TypeError) as error:
            told = str(error).partition("\n\t")[2].partition("\n")[0] or str(error)
            raise ValueError(f"--detector-weights {weights} are not of {name}: {told}") from None
        self.model.eval().to(self.device)
        with weights.open("rb") as file:
            self.digest = hashlib.file_digest(file, lambda: hashlib.blake2b(name.encode(), digest_size=8)).hexdigest()

    def __call__(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        """Frames, uint8 (height, width, 3) each -> people in each, float64 (n, 5): x1, y1, x2, y2 as fractions, score."""
        import torch

        pictures = [torch.from_numpy(frame).to(self.device).permute(2, 0, 1).float() / 255 for frame in frames]
        with torch.inference_mode():
            found = self.model(pictures)
        people = []
        for frame, one in zip(frames, found, strict=True):
            person = (one["labels"] == PERSON) & (one["scores"] >= LOWEST)
            boxes, scores = one["boxes"][person].double().cpu().numpy(), one["scores"][person].double().cpu().numpy()
            height, width = frame.shape[:2]
            people.append(np.concatenate([boxes / [width, height, width, height], scores[:, None]], axis=1))
        return people


def detect_people(dataset: Path, clips: pa.Table, detector: PersonDetector, folder: Path) -> Iterator[Detection]:
    """In the key frames of clips, KEY_FRAME_SCHEMA -> Detections, in fractions of the movie's frame. What was found is kept in
    `folder`, a line each, so that a run that is killed goes on. A frame that does not decode is told of, and holds nobody."""
    manifest = Manifest(dataset)
    reader = ShardReader(manifest.root.resolve())
    rows = dict(zip(manifest.column("key").to_pylist(), range(len(manifest)), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"people-{detector.digest}.csv"
    found = _kept(kept)
    todo = [clip for clip in clips.to_pylist() if clip["key"] in rows and clip["key"] not in found]
    with kept.open("a", newline="") as file:
        writer = csv.writer(file)
        for begin in range(0, len(todo), BATCH):
            batch, frames = todo[begin : begin + BATCH], []
            for one in list(batch):
                clip = manifest.clip(rows[one["key"]])
                try:
                    frames.append(decode_frames(clip, reader.read(clip), np.array([one["frame"]]))[0])
                except (DecodeError, OSError, ValueError) as error:
                    complain(f"the key frame of {one['key']} cannot be looked at: {error}")
                    batch.remove(one)
            for one, people in zip(batch, detector(frames) if frames else [], strict=True):
                found[one["key"]] = people
                writer.writerow([one["key"], *(f"{number:.7g}" for number in people.reshape(-1))])
            file.flush()
    for one in clips.to_pylist():
        origin, sides = np.array([one["x1"], one["y1"]]), np.array([one["x2"] - one["x1"], one["y2"] - one["y1"]])
        for person in found.get(one["key"], np.empty((0, 5))):
            box = (person[:4].reshape(2, 2) * sides + origin).reshape(-1)
            yield Detection(one["movie"], one["second"], (box[0], box[1], box[2], box[3]), min(float(person[4]), 1.0))


def _kept(file: Path) -> dict[str, np.ndarray]:
    """Key of a clip -> people, of the whole lines of an earlier run."""
    found: dict[str, np.ndarray] = {}
    if file.exists():
        text = file.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            file.write_text(whole)
        for key, *numbers in csv.reader(whole.splitlines()):
            found[key] = np.array(numbers, np.float64).reshape(-1, 5)
    return found


def _state_of(weights: Path) -> dict:
    import torch

    try:
        if weights.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(weights)
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # pickles and damaged files raise anything
        raise ValueError(f"--detector-weights {weights} cannot be read: {type(error).__name__}: {str(error)[:200]}") from None
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"--detector-weights {weights}: is no state dict of tensors")
    return state
