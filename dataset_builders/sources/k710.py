"""Kinetics-710, the paper's LabeledHybrid: Kinetics-400, -600 and -700 made into one list (appendix C.1). Tables only.

The paper's recipe is short: unite train and val of the three versions, remove duplicates by YouTube id, delete the val
videos that are in train, and give classes that were renamed between versions one name. What it leaves open is decided so:

- *Which row of a duplicate stays:* that of the newest version (700 before 600 before 400), and within a version the first
  in its lists. Newer versions relabelled and split classes ("hugging" became "hugging baby" and "hugging (not baby)").
- *An id with two labels* in two versions keeps that of the row that stays, and is counted.
- *An id that is train here and val there* is a leak, not a duplicate; `leaks` says which of its rows go. Afterwards no id
  is in both splits, so duplicates are removed within a split.
- *Test lists* only serve to find leaks: none of their rows is taken. With "from-val" they change nothing, as in the paper.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset_builders.plan import Drop
from dataset_builders.sources.annotations import SPLITS

VERSIONS = (400, 600, 700)
PAPER = {"train": 658_340, "val": 66_803}  # the official lists; the paper rounds to 658k and 67k
COLUMNS = ("youtube_id", "start", "end", "label", "split")

# Names of one class in different versions, older -> the name of K710 (a fact of the official merge: 15 of them).
RENAMED = {
    "balloon blowing": "inflating balloons",
    "changing wheel": "changing wheel (not on bike)",
    "cooking sausages": "cooking sausages (not on barbeque)",
    "drinking": "sipping cup",
    "dying hair": "dyeing hair",
    "garbage collecting": "person collecting garbage",
    "hugging": "hugging (not baby)",
    "making bed": "making the bed",
    "opening bottle": "opening bottle (not wine)",
    "passing american football (not in game)": "passing American football (not in game)",
    "picking fruit": "picking apples",
    "skiing (not slalom or crosscountry)": "skiing mono",
    "sniffing": "smelling feet",
    "throwing ball": "throwing ball (not baseball or American football)",
    "tying tie": "tying necktie",
}
# The official label maps contradict that list in three places, and released heads have the maps' order: K400's "hugging" and
# "opening bottle" stand at "hugging baby" and "opening wine bottle" (label_map_k400 rows 158 and 203), and "throwing ball"
# stands in all three maps where the lists of K600 have "chopping vegetables", which no map has (found by elimination: the
# other 599 names agree). With an official map these places are followed, so that labels and label_710to400.json fit heads.
OFFICIAL_PLACES = {"chopping vegetables": "throwing ball", "hugging": "hugging baby", "opening bottle": "opening wine bottle"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """The merged list. `row` is a row's place in its version's table, so that what belongs to it can be found again."""

    table: pa.Table  # youtube_id, start, end, label (a name of `labels`), split, version, row; an id once
    dropped: pa.Table  # the other rows of these splits: the same columns, reason (Drop.DUPLICATE or LEAK) and detail
    labels: list[str]  # class names; place = index
    maps: dict[int, list[int]]  # for each version: entry i is the index in `labels` of that version's class i
    report: dict[str, int]  # counts, in the order to be read
    notes: tuple[str, ...]  # sentences that a user must read


def merge(
    versions: Mapping[int, pa.Table],
    leaks: Literal["from-train", "from-val"] = "from-train",
    label_map: Sequence[str] | None = None,
    classes: Mapping[int, Sequence[str]] | None = None,
    with_test: bool = False,
) -> Merge:
    """Lists of one to three Kinetics versions -> one list with every YouTube id once.

    `versions` maps 400, 600 or 700 to a table with the columns youtube_id, start, end (seconds), label (may be null) and
    split ("train", "val" or "test"). `leaks`: "from-train" removes every training row whose id is in a val or test list of
    any version (safe for evaluation on any of them); "from-val" removes every val row whose id is in a training list (the
    paper, C.1). `label_map` are the class names in the official order (label_map_k710.txt); without it they are sorted.
    `classes` gives a version's own class order for `maps`, which is sorted otherwise. Several versions, or a label map, make
    one class of renamed ones (`RENAMED`); a single version without a map keeps its names. `with_test` keeps rows of test lists,
    too, which otherwise only tell leaks; "from-val" then removes those whose id is in a training list as well.

    Rows of `table` come in the order in which they win: newest version first, then as listed. 1.23 M rows take 1.3 CPU seconds
    and 0.16 GiB. Raises ValueError for an unknown option, and for a class that `label_map` or `classes` lacks.
    """
    if leaks not in ("from-train", "from-val"):
        raise ValueError(f"--leaks {leaks!r} is not known; allowed are 'from-train' and 'from-val'")
    newest_first = sorted(versions, reverse=True)
    rows = pa.concat_tables([_rows(version, versions[version]) for version in newest_first]).combine_chunks()
    name_of, notes = _naming(label_map, renames=len(versions) > 1 or label_map is not None)
    labels, label_of_row, maps, classes_of_rows = _name_classes(rows, newest_first, name_of, label_map, classes or {})

    version_of_row = rows["version"].to_numpy()
    split_of_row = pc.index_in(rows["split"], value_set=pa.array(SPLITS)).to_numpy()
    video = pc.dictionary_encode(rows["youtube_id"]).combine_chunks()
    num_videos, video = len(video.dictionary), video.indices.to_numpy()

    # For each video one bit per (version, split): in which lists it is.
    lists = [(version, split) for version in sorted(versions) for split in range(len(SPLITS))]
    membership = np.zeros(num_videos, np.uint16)
    list_of_row = np.zeros(len(rows), np.uint16)
    for bit, (version, split) in enumerate(lists):
        of_list = (version_of_row == version) & (split_of_row == split)
        list_of_row[of_list] = bit
        membership[np.unique(video[of_list])] |= np.uint16(1 << bit)
    kept_splits = SPLITS if with_test else SPLITS[:2]
    leaking_splits, blamed_splits = ((0,), (1, 2)) if leaks == "from-train" else (range(1, len(kept_splits)), (0,))
    blamed = np.uint16(sum(1 << bit for bit, (_, split) in enumerate(lists) if split in blamed_splits))
    leak = np.isin(split_of_row, leaking_splits) & (membership[video] & blamed != 0)

    candidate = (split_of_row < len(kept_splits)) & ~leak
    backwards = np.flatnonzero(candidate)[::-1]
    kept_row = np.full(num_videos, -1, np.int64)
    kept_row[video[backwards]] = backwards  # of several assignments to one place NumPy keeps the last: the first row
    kept = candidate & (kept_row[video] == np.arange(len(rows)))
    duplicate = candidate & ~kept
    other_class = duplicate & (classes_of_rows >= 0) & (classes_of_rows != classes_of_rows[kept_row[video]])
    other_class &= classes_of_rows[kept_row[video]] >= 0

    rows = rows.set_column(rows.schema.get_field_index("label"), "label", label_of_row)
    names = np.array([f"K{version} {SPLITS[split]}" for version, split in lists], object)
    gone = np.flatnonzero(leak | duplicate)
    of_video = video[gone]
    details = _details(names, list_of_row[gone], leak[gone], membership[of_video] & blamed, list_of_row[kept_row[of_video]])
    reasons = pa.array(np.where(leak[gone], Drop.LEAK.value, Drop.DUPLICATE.value).tolist(), pa.string())
    dropped = rows.take(pa.array(gone)).append_column("reason", reasons).append_column("detail", details)

    report = {f"rows of {name}": int(np.sum(list_of_row == bit)) for bit, name in enumerate(names)}
    report["duplicate rows of an id"] = int(duplicate.sum())
    report["ids with two labels (the newest version's is kept)"] = len(np.unique(video[other_class]))
    report[f"leaking rows, taken {leaks.replace('-', ' ')}"] = int(leak.sum())
    for bit, name in enumerate(names):
        for blamed_bit, blamed_name in enumerate(names):
            if lists[bit][1] in leaking_splits and lists[blamed_bit][1] in blamed_splits:
                shared = leak & (list_of_row == bit) & (membership[video] >> np.uint16(blamed_bit) & 1 == 1)
                if shared.any():
                    report[f"  {name} rows that {blamed_name} has"] = int(shared.sum())
    report["rows without a label"] = int(np.sum(kept & (classes_of_rows < 0)))
    report["classes"] = len(labels)
    for number, split_name in enumerate(kept_splits):
        report[split_name] = int(np.sum(kept & (split_of_row == number)))
    if set(versions) == set(VERSIONS):
        for split_name, paper in PAPER.items():
            report[f"{split_name}: difference from the paper's {paper:,}"] = report[split_name] - paper

    expected = newest_first[0] if len(versions) == 1 and label_map is None else 710
    if len(labels) != expected and (len(versions) != 2 or label_map is not None):
        notes.append(
            f"There are {len(labels)} classes, not {expected}: lists or the label map are incomplete, or not the official ones."
        )
    table = rows.take(pa.array(np.flatnonzero(kept)))
    return Merge(table=table, dropped=dropped, labels=labels, maps=maps, report=report, notes=tuple(notes))


def class_key(label: str) -> str:
    """What two spellings of a class name have in common: underscores for spaces, quotes around it, curly ones and case are
    ignored; parentheses, hyphens and inner apostrophes ("massaging person's head") count."""
    label = re.sub(r"[\s_]+", " ", label.replace("\u2019", "'")).strip()
    if len(label) > 1 and label[0] == label[-1] and label[0] in "\"'":
        label = label[1:-1].strip()
    return label.casefold()


def _naming(label_map: Sequence[str] | None, renames: bool) -> tuple[Callable[[str], str], list[str]]:
    """-> (from the spelling of a label to the name of the class that it belongs to, notes)."""
    notes = []
    renamed = RENAMED
    if label_map is not None:  # key -> name to be shown: the label map's, K710's, or the first that is met
        spelling = {class_key(name): name for name in label_map}
        if len(spelling) != len(label_map):
            raise ValueError(f"the label map has {len(label_map)} lines but {len(spelling)} different class names")
        if "throwing ball" in spelling and "chopping vegetables" not in spelling:
            renamed = RENAMED | OFFICIAL_PLACES
            notes.append(
                "The official label map is followed where it contradicts the official list of renamed classes, so that "
                "labels fit released heads: "
                + ", ".join(f"{old!r} is labelled {new!r}" for old, new in OFFICIAL_PLACES.items())
                + ", K400's 'throwing ball' stays 'throwing ball'."
            )
    else:
        spelling = {class_key(name): name for name in RENAMED.values()} if renames else {}
    target = {key: class_key(name) for key, name in renamed.items()} if renames else {}

    def name_of(label: str) -> str:
        key = class_key(label)
        if label_map is None or key not in spelling:
            key = target.get(key, key)
        return spelling.setdefault(key, re.sub(r"[\s_]+", " ", label).strip(" \"'"))

    return name_of, notes


def _name_classes(
    rows: pa.Table,
    newest_first: Iterable[int],
    name_of: Callable[[str], str],
    label_map: Sequence[str] | None,
    classes: Mapping[int, Sequence[str]],
) -> tuple[list[str], pa.Array, dict[int, list[int]], np.ndarray]:
    """Class names in order, each row's name, each version's map, each row's index (-1 for none)."""
    encoded = pc.dictionary_encode(rows["label"]).combine_chunks()
    spellings = encoded.dictionary.to_pylist()
    spelling_of_row = encoded.indices.fill_null(-1).to_numpy()
    version_of_row = rows["version"].to_numpy()
    order = sorted(range(len(spellings)), key=lambda index: (spellings[index].casefold(), spellings[index]))
    listed: dict[int, list[str]] = {}
    own: dict[int, list[str]] = {}
    for version in newest_first:  # the newest version's spelling is the one that is shown
        present = set(np.unique(spelling_of_row[version_of_row == version]).tolist())
        listed[version] = [spellings[index] for index in order if index in present]
        own[version] = list(classes.get(version, ()))
    names = {label: name_of(label) for version in newest_first for label in (*listed[version], *own[version])}
    labels = sorted(set(names.values())) if label_map is None else list(label_map)
    index_of = {name: index for index, name in enumerate(labels)}
    if unknown := sorted(label for label, name in names.items() if name not in index_of):
        raise ValueError(
            f"the label map of {len(labels)} classes lacks {len(unknown)} of the lists' classes, such as "
            f"{unknown[:3]}; give the label map that belongs to these lists (label_map_k710.txt for K710), or none"
        )
    maps = {}
    for version in sorted(newest_first):
        if own[version]:
            covered = {names[label] for label in own[version]}
            lacking = sorted({label for label in listed[version] if names[label] not in covered})
            if lacking:
                raise ValueError(
                    f"the class list of Kinetics-{version} ({len(own[version])} names) lacks {len(lacking)} classes of its "
                    f"lists: {lacking[:3]}"
                )
            maps[version] = [index_of[names[label]] for label in own[version]]
        else:
            by_key = {class_key(label): label for label in reversed(listed[version])}  # two spellings of one class: once
            maps[version] = [index_of[names[by_key[key]]] for key in sorted(by_key)]
    index_of_spelling = np.array([index_of[names[label]] for label in spellings] + [-1], np.int32)  # -1 finds the last
    class_of_row = index_of_spelling[spelling_of_row]
    indices = pa.array(class_of_row, mask=class_of_row < 0)
    label_of_row = pc.take(pa.array(labels, pa.string()), indices)
    return labels, label_of_row, maps, class_of_row


def _rows(version: int, table: pa.Table) -> pa.Table:
    own = {"version": pa.array(np.full(len(table), version, np.int16)), "row": pa.array(np.arange(len(table)))}
    return pa.table({name: table[name] for name in COLUMNS} | own)


def _details(names: np.ndarray, own: np.ndarray, leak: np.ndarray, blamed: np.ndarray, kept: np.ndarray) -> pa.Array:
    """A sentence a row; there are a few hundred different ones, which are made once each."""
    code = own.astype(np.int64) << 32 | leak.astype(np.int64) << 31 | np.where(leak, blamed, kept).astype(np.int64)
    different, place = np.unique(code, return_inverse=True)
    sentences = []
    for value in different.tolist():
        name, rest = names[value >> 32], value & 0x7FFFFFFF
        if value >> 31 & 1:
            others = ", ".join(names[bit] for bit in range(len(names)) if rest >> bit & 1)
            sentences.append(f"{name}; the same YouTube id is in {others}")
        else:
            sentences.append(f"{name}; the row of {names[rest]} is kept")
    return pc.take(pa.array(sentences, pa.string()), pa.array(place))
