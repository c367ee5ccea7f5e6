"""A teacher's logits, kept by a run and read by others, which then need no teacher: RUN/teacher.

    teacher.json                                                whose they are, and of which views
    epoch-00003/steps-00000120-00000239-rank-0-of-8.parquet     those of a rank, whole or not there

| column | |
|---|---|
| position, view | of the epoch, and of the clip there |
| row, partner | of the manifest: the clip that was seen, and the one that it was mixed with, or -1 |
| logits | of all classes, float16 or float32 |

A view is a function of (seed, epoch, position, view), and of whether clips could be decoded: where one could not, another stood
in. So a record says which clips were seen, and what was not seen so is not found. A run that was killed keeps again what came
after its last checkpoint: records may be there twice, and are the same.
"""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.loader import Batch, ClipLoader
from pipeline.sampling.mixing import Mixing
from pipeline.sampling.recipe import SamplingRecipe
from pipeline.sampling.splits import split_digest
from pipeline.settings import completed
from pipeline.storage.files import write_durably, write_whole
from pipeline.storage.manifest import Manifest
from train.augmentation import AugmentConfig

FOLDER, FILE, FORMAT = "teacher", "teacher.json", 1
FULL = 16 << 20  # bytes of a file: at 710 classes in fp16, 90 steps of 128 views
NAMES = re.compile(r"steps-(\d+)-(\d+)-rank-\d+-of-\d+-start-(\d+)\.parquet")
KEY = ["position", "view", "row", "partner"]
OF_TOKENS = "tubelet_size", "patch_size"  # of a recipe: the student's, of which a view without masks knows nothing
OF_LABELS = ("smoothing",)  # of the noise
OF_DATA = {"dataset": "another dataset", "clips": "other clips in the split, as its manifest was changed"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What decides the logits of a position, besides the teacher."""

    recipe: SamplingRecipe
    augment: AugmentConfig
    dataset: str
    """Fingerprint."""
    version: int
    clips: str
    """Which ones the split takes."""
    logits: str

    @staticmethod
    def of(loader: ClipLoader, augment: AugmentConfig, logits: str) -> "Asked":
        """Of a run, by its loader."""
        manifest = loader.manifest
        return Asked(
            recipe=loader.recipe,
            augment=augment,
            dataset=manifest.fingerprint,
            version=manifest.version,
            clips=split_digest(manifest, loader.recipe.split),
            logits=logits,
        )

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return json.loads(json.dumps(asdict(self)))

    def differences(self, kept: Mapping[str, Any]) -> list[str]:
        """What a teacher.json has otherwise, each in words; fields that it lacks mean what code before them did."""
        kept = dict(kept) | {name: completed(kept[name], getattr(self, name)) for name in ("recipe", "augment")}
        flat: list[dict[str, Any]] = [{}, {}]
        for values, into in zip((kept, self.plain()), flat, strict=True):
            into.update({name: values[name] for name in ("logits", "dataset", "version", "clips")})
            into.update({f"augment.{name}": value for name, value in values["augment"].items()} | values["recipe"])
        theirs, ours = json.loads(json.dumps(flat))
        names = [name for name in {**ours, **theirs} if name.removeprefix("augment.") not in OF_TOKENS + OF_LABELS]
        differ = [name for name in names if theirs.get(name) != ours.get(name)]
        return [OF_DATA.get(name) or f"{name} {theirs.get(name)} -> {ours.get(name)}" for name in differ]


def keys_of(batch: Batch, mixing: Mixing | None) -> np.ndarray:
    """(n, 4) int64, the KEY of each view of a batch, mixed so."""
    views = len(batch.views) // len(batch.rows)
    rows_n = batch.rows.numpy().repeat(views)
    partners_n = np.full_like(rows_n, -1) if mixing is None else rows_n[mixing.partners]
    view_n = np.tile(np.arange(views), len(batch.rows))
    return np.stack([batch.positions.numpy().repeat(views), view_n, rows_n, partners_n], axis=1)


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass, not yet written."""

    epoch: int
    step: int
    keys_n4: np.ndarray
    logits: Tensor  # (n, C), on the CPU
    copied: torch.cuda.Event | None  # when they are there


class LogitWriter:
    """Of a rank. Files are written when there is enough for one, and before a checkpoint (`flush`); the host waits for the
    device only then."""

    def __init__(
        self,
        folder: Path,
        asked: Asked,
        classes: Sequence[str] | int,
        made: Mapping[str, str],
        *,
        rank: int,
        world_size: int,
        full: int = FULL,
    ) -> None:
        """`made`: how they are computed, plain words, of which others are told that compute otherwise."""
        self.folder, self._asked, self._full = folder, asked, full
        self._about = {"format": FORMAT, "classes": classes, "made": [dict(made)], **asked.plain()}
        earlier = (NAMES.fullmatch(file.name) for file in folder.glob("epoch-*/*.parquet"))
        start = 1 + max((int(name[3]) for name in earlier if name), default=0)  # of the run
        self._of = f"rank-{rank}-of-{world_size}-start-{start:04d}"
        self._passes: list[Pass] = []
        self._teacher: str | None = None

    def check(self, teacher: str) -> None:
        """For rank 0, which knows the fingerprint of the teacher. Raises ValueError if the folder has other logits."""
        self._teacher = teacher
        if (self.folder / FILE).exists():
            kept = read_about(self.folder / FILE)
            differ = [] if kept["teacher"] == teacher else [f"teacher {kept['teacher']} -> {teacher}"]
            if differ := differ + self._asked.differences(kept):
                raise ValueError(
                    f"{self.folder} keeps logits of another teacher, or of other views: {', '.join(differ)}; give another "
                    "--out, or remove that folder"
                )
            if self._about["made"][0] not in kept["made"]:
                write_durably(self.folder / FILE, _json(kept | {"made": kept["made"] + self._about["made"]}))

    def add(self, batch: Batch, keys_n4: np.ndarray, logits_nC: Tensor) -> None:
        """Of a forward pass, rounded already. Raises OSError."""
        copied, here = None, logits_nC.detach()
        if here.is_cuda:
            here = torch.empty(here.shape, dtype=here.dtype, pin_memory=True).copy_(here, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._passes.append(Pass(batch.epoch, batch.step, keys_n4, here, copied))
        if sum(each.logits.nbytes + each.keys_n4.nbytes for each in self._passes) >= self._full:
            there = [*itertools.takewhile(lambda each: each.copied is None or each.copied.query(), self._passes)]
            last = (batch.epoch, batch.step)  # has more passes to come, perhaps; and a file has whole steps
            self._write([each for each in there if (each.epoch, each.step) != last])

    def flush(self) -> None:
        """Write what is left. Called between two steps. Raises OSError."""
        for each in self._passes:
            if each.copied:
                each.copied.synchronize()
        self._write(self._passes)

    def _write(self, passes: Sequence[Pass]) -> None:
        if passes and self._teacher is not None and not (self.folder / FILE).exists():
            self.folder.mkdir(exist_ok=True)
            write_durably(self.folder / FILE, _json(self._about | {"teacher": self._teacher}))
        for epoch, each in itertools.groupby(passes, key=lambda each: each.epoch):
            group = list(each)
            keys = dict(zip(KEY, np.concatenate([one.keys_n4 for one in group]).T, strict=True))
            logits_nC = torch.cat([one.logits for one in group]).numpy()
            lists = pa.FixedSizeListArray.from_arrays(pa.array(logits_nC.reshape(-1)), logits_nC.shape[1])
            table = pa.table({**keys, "logits": lists})
            folder = self.folder / f"epoch-{epoch:05d}"
            folder.mkdir(parents=True, exist_ok=True)
            name = f"steps-{group[0].step:08d}-{group[-1].step:08d}-{self._of}.parquet"
            write_whole(folder / name, partial(pq.write_table, table, compression="zstd"))
        self._passes = self._passes[len(passes) :]


class KeptLogits:
    """Those that a run keeps, or has kept: what stands for its teacher."""

    def __init__(self, place: str) -> None:
        """The folder of the run, or the one in it. Raises ValueError if no logits are there."""
        self.place = place
        self._folder = next((f for f in (Path(place) / FOLDER, Path(place)) if (f / FILE).exists()), None)
        if self._folder is None:
            raise ValueError(
                f"--teacher-logits {place} has no {FOLDER}/{FILE}: no logits are kept there, or none yet; `--cache-teacher` "
                "makes a run keep its teacher's"
            )
        self.about = read_about(self._folder / FILE)
        classes, self.teacher = self.about["classes"], str(self.about["teacher"])
        self.names: Sequence[str] | None = None if isinstance(classes, int) else classes
        self.num_classes = classes if isinstance(classes, int) else len(classes)
        self._epoch, self._files = -1, dict[Path, tuple[int, int]]()  # of that epoch, and the steps they have
        self._read: dict[Path, tuple[dict[tuple[int, ...], int], np.ndarray]] = {}

    def told_apart(self, names: Sequence[str] | None, num_classes: int, manifest: Manifest | None) -> None:
        """Raises ValueError if these are not the classes that the logits are of."""
        if num_classes != self.num_classes or (None not in (names, self.names) and list(names or ()) != list(self.names or ())):
            first = next((f", such as {n!r}" for n, m in zip(self.names or (), names or (), strict=False) if n != m), "")
            raise ValueError(
                f"--teacher-logits {self.place} are of {self.num_classes} classes{first}, which are not the {num_classes} of "
                "the dataset in their order; --classes teacher gives the student the teacher's"
            )

    def check(self, asked: Asked) -> None:
        """Raises ValueError, with what differs, if they are of other views than a run will see."""
        if differ := asked.differences(self.about):
            raise ValueError(
                f"--teacher-logits {self.place} are of other views than this run's: {', '.join(differ)}; give these values as "
                "they were, or --teacher WEIGHTS"
            )

    def otherwise(self, made: Mapping[str, str]) -> list[str]:
        """How they were computed otherwise than is done here, in words."""
        kept = {name: dict.fromkeys(each[name] for each in self.about["made"]) for name in made}
        return [f"{name} {' and '.join(kept[name])}, here {value}" for name, value in made.items() if [*kept[name]] != [value]]

    def reach(self) -> tuple[int, int]:
        """The last epoch, and the last step of it, that some rank has kept; (0, -1) if there is none."""
        assert self._folder is not None
        folders = sorted(self._folder.glob("epoch-*"))
        steps = [last for _, last in files_of(folders[-1]).values()] if folders else []
        return (int(folders[-1].name.removeprefix("epoch-")), max(steps)) if steps else (0, -1)

    def of(self, batch: Batch, keys_n4: np.ndarray) -> np.ndarray:
        """(n, C), as they were rounded. Raises ValueError for a view that is not there."""
        wanted = [tuple(key) for key in keys_n4.tolist()]
        for again in (False, True):
            self._look(batch, again=again)
            parts = [self._read[file] for file in self._files if file in self._read]
            found = [next((logits_nC[at[key]] for at, logits_nC in parts if key in at), None) for key in wanted]
            if lacking := [key for key, logits_C in zip(wanted, found, strict=True) if logits_C is None]:
                continue
            return np.stack(found)  # type: ignore[arg-type]
        raise ValueError(self._missing(batch, lacking[0]))

    def _look(self, batch: Batch, *, again: bool) -> None:
        """Read the files that have a batch's step, and forget those of earlier ones."""
        assert self._folder is not None and batch.loader is not None
        if again or batch.epoch != self._epoch:
            self._read = {}
            self._epoch, self._files = batch.epoch, files_of(self._folder / f"epoch-{batch.epoch:05d}")
        self._read = {file: part for file, part in self._read.items() if self._files[file][1] >= batch.step}
        for file, (first, last) in self._files.items():
            if first <= batch.step <= last and file not in self._read:
                self._read[file] = self._part(file, batch.loader.rank, batch.loader.world_size)

    def _part(self, file: Path, rank: int, world_size: int) -> tuple[dict[tuple[int, ...], int], np.ndarray]:
        """Of a file what this rank will ask for: places of keys, and logits."""
        try:
            table = pq.read_table(file)
            keys_n4 = np.stack([table[name].to_numpy() for name in KEY], axis=1)
            logits_nC = table["logits"].combine_chunks().flatten().to_numpy().reshape(len(keys_n4), self.num_classes)
        except (pa.ArrowInvalid, KeyError, ValueError) as error:
            raise ValueError(f"{file} has no kept logits ({error}); --teacher WEIGHTS goes on without them") from error
        mine = keys_n4[:, 0] % world_size == rank  # as every order shares its positions
        return {tuple(key): at for at, key in enumerate(keys_n4[mine].tolist())}, logits_nC[mine]

    def _missing(self, batch: Batch, key: tuple[int, ...]) -> str:
        where = f"position {key[0]} of epoch {batch.epoch} (step {batch.step})"
        other = any(key[:2] == kept[:2] for part, _ in self._read.values() for kept in part)
        assert batch.loader is not None
        why = f"{self.place} has no logits of {where}: they reach to step %d of epoch %d" % self.reach()[::-1]
        if other:
            mixed = "" if key[3] < 0 else f", mixed with {batch.loader.manifest.clip(key[3]).key}"
            why = (
                f"at {where} stands {batch.loader.manifest.clip(key[2]).key}{mixed}, and the teacher of {self.place} saw "
                "another clip there: one could not be decoded, there or here (failures.jsonl)"
            )
        return f"{why}; the same command with --teacher WEIGHTS instead of --teacher-logits goes on"


def read_about(file: Path) -> dict[str, Any]:
    """A teacher.json. Raises ValueError for what is none, or newer than this code."""
    try:
        about = json.loads(file.read_text())
        lacking = {"format", "teacher", "classes", "made", *(field.name for field in fields(Asked))} - about.keys()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} does not say whose logits are kept ({error})") from error
    if lacking or about["format"] > FORMAT:
        raise ValueError(f"{file} has format {about.get('format')}; this tubecell reads up to {FORMAT}: update it")
    return about


def files_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Of an epoch: the first and the last step in each; those of the run's last start first, since of two records they have
    the one that it went on with."""
    found = [(file, name) for file in folder.glob("steps-*.parquet") if (name := NAMES.fullmatch(file.name))]
    found.sort(key=lambda pair: int(pair[1][3]), reverse=True)
    return {file: (int(name[1]), int(name[2])) for file, name in found}


def _json(about: Mapping[str, Any]) -> bytes:
    return (json.dumps(about, indent=1) + "\n").encode()
