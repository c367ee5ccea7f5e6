"""What the capital names of the pages stand for: small, real, made by our own commands, each once for a whole test run.

A page's sandbox gets a copy of what the page names, unless the page makes it itself (`--out NAME`). A name is a word, or a
pattern.
"""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dataset_builders.media.moving_shapes import MOTIONS
from model.classifier import VideoClassifier
from model.config import ModelConfig
from model.initialization import initialise
from model.videomae import VideoMAE
from model.weights import metadata_of
from pipeline.storage.file_lock import lock
from tests.docs.smaller import smaller
from tests.train.detection.scenes import write_scenes
from tests.train.localization.made_features import write_features
from tests.train.test_retrieve import SAID, make_tower
from train.checkpoint.weights import save_weights

CLIP = "--size 64x64 --frames 36 --fps 30"
FEW = "--clips-per-shard 8 --workers 1"  # ways to build
RELEASED = ModelConfig(encoder_dim=64, encoder_depth=2, encoder_heads=1, decoder_dim=64, decoder_depth=1, decoder_heads=1)
CLASSES = {"k400": 400, "k600": 600, "k710": 710, "ssv2": 174}
Make = Callable[["Shelf", Path], None]
MATERIALS: dict[str, Make] = {}


def material(*names: str) -> Callable[[Make], Make]:
    """What makes one of these names, in a folder that is empty."""

    def noted(make: Make) -> Make:
        MATERIALS.update(dict.fromkeys(names, make))
        return make

    return noted


def of_name(name: str) -> Make | None:
    """What makes it."""
    return next((make for pattern, make in MATERIALS.items() if re.fullmatch(pattern, name)), None)


class Shelf:
    """The materials that were made, in a folder that the processes of a test run share."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        folder.mkdir(exist_ok=True)

    def get(self, name: str) -> Path:
        """Made when it is first wanted."""
        make = of_name(name)
        assert make, name
        with (self.folder / f"{name}.lock").open("w") as file:
            lock(file, wait=True)
            if not (self.folder / f"{name}.done").exists():
                (self.folder / name).mkdir()
                make(self, self.folder / name / name)
                (self.folder / f"{name}.done").touch()
        return self.folder / name / name

    def call(self, command: str) -> None:
        """A command of ours, as small as on a page. Raises AssertionError with what it said."""
        done = subprocess.run(
            ["bash", "-c", smaller(command)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"


# ------------------------------------------------------------------------------------------------ videos and datasets


@material("VIDEOS", "TRAIN")
def videos(shelf: Shelf, place: Path) -> None:
    """Sixteen, in a folder a class."""
    shelf.call(f"tubecell generate-clips --out {place} --clips 16 {CLIP}")


@material("VAL", "NEW")
def other_videos(shelf: Shelf, place: Path) -> None:
    shelf.call(f"tubecell generate-clips --out {place} --clips 8 --seed 1 {CLIP}")


@material("MORE_VIDEOS")
def more_videos(shelf: Shelf, place: Path) -> None:
    """Of other clips than VIDEOS and VAL, and shorter."""
    shelf.call(f"tubecell generate-clips --out {place} --clips 4 --seed 2 --size 64x64 --frames 24 --fps 30")


@material("[ab]\\.mp4")
def video(shelf: Shelf, place: Path) -> None:
    """A video of 150 frames: three windows of sixteen, every fourth."""
    clips = place.with_name("clips")
    shelf.call(f"tubecell generate-clips --out {clips} --clips 1 --seed {ord(place.name[0])} --size 64x64 --frames 150")
    next(clips.rglob("*.mp4")).rename(place)


@material("b\\.mkv")
def other_container(shelf: Shelf, place: Path) -> None:
    place.write_bytes(shelf.get("b.mp4").read_bytes())


@material("DATASET", "UNLABELED")
def dataset(shelf: Shelf, place: Path) -> None:
    shelf.call(f"tubecell build-unlabeled-hybrid --folder own={shelf.get('VIDEOS')} --out {place} {FEW}")


@material("OTHER")
def other_dataset(shelf: Shelf, place: Path) -> None:
    shelf.call(f"tubecell build --folder other={shelf.get('MORE_VIDEOS')} --out {place} {FEW} --min-frames 8")


@material("LABELED", "OWN", "K710", "K400", "SSV2")
def labeled(shelf: Shelf, place: Path) -> None:
    """Eight classes, 16 clips of train and 8 of val."""
    folders = f"--folder own={shelf.get('TRAIN')} --folder own:val={shelf.get('VAL')} --labels-from-folder"
    shelf.call(f"tubecell build {folders} --out {place} {FEW}")


@material("TARS")
def tars(shelf: Shelf, place: Path) -> None:
    """000.tar and 001.tar, of somebody's."""
    place.mkdir()
    for number, shard in enumerate(sorted((shelf.get("DATASET") / "shards").glob("*.tar"))):
        (place / f"{number:03d}.tar").write_bytes(shard.read_bytes())


@material("CAPTIONED")
def captioned(shelf: Shelf, place: Path) -> None:
    """With two sentences a clip."""
    rows = ["path,caption,split"]
    for name, split in (("TRAIN", "train"), ("VAL", "val")):
        rows += [f"{file},{text},{split}" for file in sorted(shelf.get(name).rglob("*.mp4")) for text in SAID[file.parent.name]]
    (place.parent / "captions.csv").write_text("\n".join(rows) + "\n")
    shelf.call(f"tubecell build --list own={place.parent / 'captions.csv'} --out {place} {FEW}")


@material(r"captions\.csv")
def captions(shelf: Shelf, place: Path) -> None:
    place.write_bytes((shelf.get("CAPTIONED").parent / "captions.csv").read_bytes())


@material("MSRVTT_VIDEOS")
def msrvtt_videos(shelf: Shelf, place: Path) -> None:
    """video0.mp4 and so on."""
    place.mkdir()
    for number, file in enumerate(sorted(shelf.get("VIDEOS").rglob("*.mp4"))):
        (place / f"video{number}.mp4").write_bytes(file.read_bytes())


@material("MSRVTT_LISTS")
def msrvtt_lists(shelf: Shelf, place: Path) -> None:
    place.mkdir()
    files = enumerate(sorted(shelf.get("VIDEOS").rglob("*.mp4")))
    said = {f"video{number}": SAID[file.parent.name] for number, file in files}
    videos = [{"video_id": name, "split": ("train", "validate")[number % 2]} for number, name in enumerate(said)]
    sentences = [{"video_id": name, "caption": text} for name, texts in said.items() for text in texts]
    (place / "train_val_videodatainfo.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))


@material("MOVIES")
def movies(shelf: Shelf, place: Path) -> None:
    """Four to train on and two others, of rectangles that wander; beside them, what is known of them."""
    write_scenes(place.parent, 4, 2)
    (place.parent / "movies").rename(place)


@material("AVA_LISTS")
def ava_lists(shelf: Shelf, place: Path) -> None:
    (shelf.get("MOVIES").parent / "annotations").rename(place)


@material("ava_detection_val_boxes_and_labels\\.csv", "PROPOSALS\\.csv")
def proposals(shelf: Shelf, place: Path) -> None:
    place.write_bytes((shelf.get("MOVIES").parent / "proposals.csv").read_bytes())


@material("AVA")
def ava(shelf: Shelf, place: Path) -> None:
    places = f"{shelf.get('MOVIES')} {shelf.get('AVA_LISTS')} --trimmed --proposals {shelf.get('PROPOSALS.csv')}"
    shelf.call(f"tubecell build-detection --ava {places} --out {place} {FEW}")


# ------------------------------------------------------------------------------------------------- runs and weights


@material("RUN", "PRETRAINED")
def run(shelf: Shelf, place: Path) -> None:
    """Two steps of pre-training."""
    shelf.call(f"tubecell pretrain tiny --data {shelf.get('DATASET')} --out {place}")


@material("TUNED", "POST", "TEACHER")
def tuned(shelf: Shelf, place: Path) -> None:
    """A classifier of the classes of LABELED."""
    shelf.call(
        f"tubecell finetune tiny --data {shelf.get('LABELED')} --init {shelf.get('RUN')} --out {place} --evaluate-every 2"
    )


@material("STUDENT")
def student(shelf: Shelf, place: Path) -> None:
    run(shelf, place)


@material("WEIGHTS", "model\\.safetensors")
def weights(shelf: Shelf, place: Path) -> None:
    """Of a classifier, in a file of ours."""
    save(place, VideoClassifier(RELEASED, len(MOTIONS)), list(MOTIONS))


@material(r"vit_[sblhg]_\w+_pt_\w+e\.pth", r"vit_[sblhg]_hybrid_pt_\w+e\.pth")
def released_autoencoder(shelf: Shelf, place: Path) -> None:
    """As the official code saves it."""
    save(place, VideoMAE(RELEASED))


@material(r"vit_[sblhg]_\w+_(?:ft|distill\w*)\.pth")
def released_classifier(shelf: Shelf, place: Path) -> None:
    """As the official code saves it, with as many classes as the name says last."""
    save(place, VideoClassifier(RELEASED, CLASSES[re.findall("|".join(CLASSES), place.name)[-1]]))


@material(r"label_map_(?:k400|k600|k710|ssv2)\.json")
def label_map(shelf: Shelf, place: Path) -> None:
    """Names for those classes; the first eight are the generated motions."""
    number = CLASSES[re.findall("|".join(CLASSES), place.name)[-1]]
    place.write_text(json.dumps([*MOTIONS, *(f"class {n}" for n in range(number))][:number]))


def save(place: Path, model: torch.nn.Module, labels: list[str] | None = None) -> None:
    initialise(model, seed=0)
    with torch.no_grad():
        draws = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draws)
    if place.suffix == ".pth":
        torch.save({"model": dict(model.named_parameters())}, place)
    else:
        save_weights(place, model.state_dict(), metadata_of(RELEASED, labels))


@material("TOWER")
def tower(shelf: Shelf, place: Path) -> None:
    """A text tower that knows the words of CAPTIONED."""
    make_tower(place, {word for said in SAID.values() for text in said for word in text.split()})


@material("FEATURES")
def features(shelf: Shelf, place: Path) -> None:
    """Of videos with actions, 64 wide, as RUN's and WEIGHTS' are; beside them, which actions."""
    write_features(place.parent / "made", {"train": 6, "val": 2, "test": 2}, steps=(40, 60))
    place.mkdir()
    for file in (place.parent / "made" / "features").iterdir():
        np.save(place / file.name, np.tile(np.load(file), 4))


@material(r"thumos14\.json", r"fineaction\.json", r"ANNOTATIONS\.json")
def annotations(shelf: Shelf, place: Path) -> None:
    """With the splits that those sets have."""
    table = json.loads((shelf.get("FEATURES").parent / "made" / "annotations.json").read_text())
    called = {
        "thumos14.json": {"train": "validation", "val": "test"},
        "fineaction.json": {"train": "training", "val": "validation"},
    }
    for video in table["database"].values():
        video["subset"] = called.get(place.name, {}).get(video["subset"], video["subset"])
    place.write_text(json.dumps(table))


@material(r"SCORES\.json")
def scores(shelf: Shelf, place: Path) -> None:
    """What somebody else says of each video: how much of each class there is in it."""
    videos = json.loads(shelf.get("ANNOTATIONS.json").read_text())["database"]
    classes = sorted({action["label"] for video in videos.values() for action in video["annotations"]})
    said = [{"label": name, "score": 1 / (1 + number)} for number, name in enumerate(classes)]
    place.write_text(json.dumps({"results": dict.fromkeys(videos, said)}))


@material("LOCALIZER")
def localizer(shelf: Shelf, place: Path) -> None:
    given = f"--features {shelf.get('FEATURES')} --annotations {shelf.get('thumos14.json')}"
    shelf.call(f"tubecell localize tiny {given} --out {place}")


@material(r"train\.csv", r"val\.csv")
def video_list(shelf: Shelf, place: Path) -> None:
    """An official VideoMAE list: path, space, number of the class."""
    folder = "TRAIN" if place.stem == "train" else "VAL"
    files = sorted(shelf.get(folder).rglob("*.mp4"))
    place.write_text(
        "".join(f"{folder}/{f.relative_to(shelf.get(folder))} {list(MOTIONS).index(f.parent.name)}\n" for f in files)
    )


# --------------------------------------------------------------------------------------------- official sets, in small


@material("K400_VIDEOS", "K600_VIDEOS", "K700_VIDEOS")
def kinetics_videos(shelf: Shelf, place: Path) -> None:
    """CLASS/ID_SSSSSS_EEEEEE.mp4, of ids that no other version has."""
    version = place.name[:4]
    for file in sorted(shelf.get("VIDEOS").rglob("*.mp4")):
        name = f"{version}{file.parent.name[:4]:_<4}{file.stem[2:4]}x"[:11]
        (place / file.parent.name).mkdir(parents=True, exist_ok=True)
        (place / file.parent.name / f"{name}_000001_000011.mp4").write_bytes(file.read_bytes())


@material("K400_LISTS", "K600_LISTS", "K700_LISTS")
def kinetics_lists(shelf: Shelf, place: Path) -> None:
    """train.csv and val.csv."""
    place.mkdir()
    rows = [(f.parent.name, f.stem[:11]) for f in sorted(shelf.get(place.name.replace("LISTS", "VIDEOS")).rglob("*.mp4"))]
    for split, part in (("train", rows[::2]), ("val", rows[1::2])):
        lines = ["label,youtube_id,time_start,time_end,split", *(f"{label},{name},1,11,{split}" for label, name in part)]
        (place / f"{split}.csv").write_text("\n".join(lines) + "\n")


@material("SSV2_VIDEOS")
def something_videos(shelf: Shelf, place: Path) -> None:
    place.mkdir()
    for number, file in enumerate(sorted(shelf.get("VIDEOS").rglob("*.mp4")), 1):
        (place / f"{number}.mp4").write_bytes(file.read_bytes())


@material("SSV2_LISTS")
def something_lists(shelf: Shelf, place: Path) -> None:
    place.mkdir()
    files = sorted(shelf.get("VIDEOS").rglob("*.mp4"))
    rows = [{"id": f"{n}", "label": "", "template": f.parent.name, "placeholders": []} for n, f in enumerate(files, 1)]
    (place / "something-something-v2-train.json").write_text(json.dumps(rows[::2]))
    (place / "something-something-v2-validation.json").write_text(json.dumps(rows[1::2]))
    labels = {motion: f"{number}" for number, motion in enumerate(dict.fromkeys(row["template"] for row in rows))}
    (place / "something-something-v2-labels.json").write_text(json.dumps(labels))
