import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.children import environment
from pipeline.decoding.decode import ClipRequest, Decoder, decode_libav
from pipeline.loader import SIDECAR, ClipLoader, LoaderError, LoaderState
from pipeline.sampling import EvaluationSampler, SamplingRecipe, sample_clips
from pipeline.storage.manifest import Manifest
from pipeline.storage.shards import ShardReader
from tests.manifest_rows import with_columns
from tests.pipeline import faulty_decoders

RECIPE = SamplingRecipe(views_per_step=8, views_per_clip=2, input_size=32, patch_size=8, num_frames=8)  # 4 clips, 3 steps
STEPS = 7  # over two epochs of the 12 clips


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha1(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def take(
    dataset: Path,
    steps: int = STEPS,
    world_size: int = 1,
    state: LoaderState | dict[str, Any] | None = None,
    decoder: Decoder = decode_libav,
    **options: object,
) -> tuple[list[dict[int, str]], LoaderState, list[ClipLoader]]:
    """Per step: position -> digest of all that the model is given there; the state after; the loaders, closed."""
    loaders = [
        ClipLoader(dataset, RECIPE, rank=r, world_size=world_size, state=state, decoder=decoder, **options)  # type: ignore[arg-type]
        for r in range(world_size)
    ]
    taken = []
    for _ in range(steps):
        step = {}
        for loader in loaders:
            for _ in range(loader.batches_per_step):
                batch = next(loader)
                for i, position in enumerate(batch.positions.tolist()):
                    of_clip = slice(2 * i, 2 * i + 2)
                    parts = (batch.views, batch.visible, batch.decoded, batch.loss_weight)
                    step[position] = digest(*(part[of_clip] for part in parts))
        taken.append(dict(sorted(step.items())))
    after = LoaderState.merged([loader.state() for loader in loaders])
    for loader in loaders:
        loader.close()
    return taken, after, loaders


@pytest.fixture(scope="module")
def expected(dataset: Path) -> list[dict[int, str]]:
    taken, state, loaders = take(dataset)
    assert (state.epoch, state.step, state.ledger) == (2, 1, ())
    assert loaders[0].steps_per_epoch == 3
    assert [sorted(step) for step in taken[:4]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [0, 1, 2, 3]]
    return taken


@pytest.mark.parametrize(
    ("world_size", "options"),
    [
        (2, {}),
        (4, {"workers": 1}),
        (1, {"workers": 5}),
        (1, {"clips_per_batch": 1, "prefetch": 1}),
        (2, {"clips_per_batch": 1}),
    ],
    ids=str,
)
def test_batches_do_not_depend_on_ranks_workers_or_accumulation(
    dataset: Path, expected: list[dict[int, str]], world_size: int, options: dict[str, object]
) -> None:
    assert take(dataset, world_size=world_size, **options)[0] == expected


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (4, 1)])
def test_resume_on_another_world_size(dataset: Path, expected: list[dict[int, str]], before: int, after: int) -> None:
    first, state, _ = take(dataset, 4, world_size=before)
    for whole in (state, json.loads(json.dumps(state.plain()))):
        rest, _, _ = take(dataset, STEPS - 4, world_size=after, state=whole)
        assert first + rest == expected


@pytest.fixture(scope="module")
def labelled(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same clips: 0 to 3 are for training, 4 and 5 have no split, 6 to 9 are for validation, 10 and 11 for tests. Four
    classes in turns; each fifth clip has none."""
    splits = ["train"] * 4 + [None] * 2 + ["val"] * 4 + ["test"] * 2
    labels = [None if i % 5 == 4 else f"class {3 - i % 4}" for i in range(12)]
    return with_columns(dataset, tmp_path_factory.mktemp("labelled"), split=splits, label=labels)


def test_training_takes_its_split_and_says_what_it_leaves(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(ClipLoader(labelled, RECIPE, decoder=faulty_decoders.refusing, max_failure_share=1.0)) as loader:
        told = "6 clips of split train (left out: 4 val, 2 test)"
        assert loader.num_clips == 6 and told in loader.notices
        assert f"{labelled}: {told}\n" in capsys.readouterr().err
        assert f"{labelled}, version 1: 6 clips of split train; 4 clips x 2 views a batch of rank 0 of 1 on cpu" in repr(loader)
        taken = [row for _ in range(20) for row in next(loader).rows.tolist()]
        assert loader.failures and set(taken) == {0, 1, 2, 4, 5}  # substitutes are of the split, too
        state = loader.state()
    assert state["recipe"]["split"] == "train"
    other = Manifest(labelled)
    for split, words in (("val", r"split \(was train, is val\)"), ("train", "has other clips than when the state was written")):
        with pytest.raises(ValueError, match=words):
            ClipLoader(labelled, replace(RECIPE, split=split), state={**state, "taken": "0" * 32})
    assert state["dataset"] == other.fingerprint
    with pytest.raises(ValueError, match="no state of a loader: it lacks dataset, ledger, recipe, version"):
        ClipLoader(labelled, RECIPE, state={"epoch": 0, "step": 0})
    before = {name: value for name, value in state.items() if name != "taken"}  # a state from before there were splits
    recipe = {name: value for name, value in before["recipe"].items() if name != "split"}
    with closing(ClipLoader(labelled, RECIPE, state={**before, "step": 0, "epoch": 0, "recipe": recipe})) as loader:
        assert loader.recipe.split == "all" and loader.num_clips == 12


def test_labels_and_keys_of_a_batch(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Manifest(labelled)
    with closing(ClipLoader(labelled, replace(RECIPE, split="all"))) as loader:
        assert (loader.label_kind, loader.label_map) == ("single", [f"class {i}" for i in range(4)])
        for batch in loader.epochs(1):
            rows = batch.rows.tolist()
            assert batch.labels.tolist() == [-1 if row % 5 == 4 else 3 - row % 4 for row in rows]
            assert batch.labels.dtype == torch.int64 and batch.keys == [manifest.clip(row).key for row in rows]
    with closing(ClipLoader(labelled, replace(RECIPE, split="val"), label_map=["class 3", "class 1"])) as loader:
        (batch,) = loader.epochs(1)
        found = dict(zip(batch.rows.tolist(), batch.labels.tolist(), strict=True))
        assert found == {6: 1, 7: -1, 8: 0, 9: -1}
        told = "1 of 4 clips have a label that the label map of 2 classes lacks, such as 'class 0': they count as without it"
        assert loader.notices[-1] == told and capsys.readouterr().err.count(told) == 1


def test_epochs_end(dataset: Path) -> None:
    with closing(ClipLoader(dataset, RECIPE, clips_per_batch=2)) as loader:
        next(loader)
        with pytest.raises(ValueError, match=r"state\(\) in the middle of a step, of which 1 of 2 batches have been taken"):
            loader.state()
        next(loader)
        epochs = loader.epochs(2)
        assert len(epochs) == 2 * (2 + 3)
        taken = [(batch.epoch, batch.step) for batch in epochs]
        assert taken == [(0, 1)] * 2 + [(0, 2)] * 2 + [(1, 0)] * 2 + [(1, 1)] * 2 + [(1, 2)] * 2
        assert (len(epochs), list(epochs)) == (0, [])
        state = loader.state()
        assert (state["epoch"], state["step"]) == (2, 0)
        assert next(loader).epoch == 2
        with pytest.raises(ValueError, match=r"epochs\(0\): at least 1"):
            loader.epochs(0)
    with closing(ClipLoader(dataset, RECIPE, state={**state, "step": 1})) as loader:
        assert [batch.step for batch in loader.epochs(1)] == [1, 2]


def test_views_of_fine_tuning(dataset: Path) -> None:
    """RandAugment before the crop, pixels of 16 bits: on any rank what its position says."""
    more: dict[str, Any] = {"crop_resize": "official", "randaugment": "rand-m7-n4-mstd0.5-inc1"}
    recipe = replace(RECIPE, masks=None, crop="random_resized", **more)
    manifest = Manifest(dataset)
    reader, operations = ShardReader(dataset), 0
    for rank in range(2):
        with closing(ClipLoader(dataset, recipe, rank=rank, world_size=2)) as loader:
            batch = next(loader)
            samples = sample_clips(manifest, recipe, 0, batch.positions.numpy(), np.zeros(2, np.int64))
            assert samples.operations is not None
            for i, row in enumerate(samples.rows.tolist()):
                clip, one = manifest.clip(row), samples.one(i)
                request = ClipRequest(clip, reader.read(clip), one.frames[0], one.boxes[0], operations=samples.operations[i])
                decode_libav(request, views := np.zeros((2, 8, 32, 32, 3), np.int16))
                assert np.array_equal(batch.views[2 * i : 2 * i + 2].numpy(), views)
            levels = batch.views.double().permute(0, 4, 1, 2, 3) / 128
            torch.testing.assert_close(batch.floats((0, 0, 0), (1, 1, 1)).double(), levels / 255)
            operations += (samples.operations[..., 0] >= 0).sum()
    assert operations > 4


def test_views_as_floats(dataset: Path) -> None:
    with closing(ClipLoader(dataset, RECIPE)) as loader:
        batch = next(loader)
        mean, std = (torch.tensor(values) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        expected = (batch.views / 255 - mean) / std
        for layout, axes in (("BCTHW", (0, 4, 1, 2, 3)), ("BTCHW", (0, 1, 4, 2, 3))):
            floats = batch.floats(layout=layout)  # type: ignore[arg-type]
            assert floats.is_contiguous() and floats.dtype == torch.float32
            torch.testing.assert_close(floats, expected.permute(axes), rtol=1e-6, atol=2e-6)
        half = batch.floats((0, 0, 0), (1, 1, 1), dtype=torch.bfloat16)
        assert torch.equal(half, (batch.views.permute(0, 4, 1, 2, 3) * torch.tensor(1 / 255)).bfloat16())
        with pytest.raises(ValueError, match="layout 'BTHWC' is not known; allowed are 'BCTHW' and 'BTCHW'"):
            batch.floats(layout="BTHWC")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="must be three numbers each"):
            batch.floats(std=(1.0, 1.0, 0.0))
        assert repr(batch).startswith("Batch(views uint8 (8, 8, 32, 32, 3), visible int64 (8, ")
        assert repr(batch).endswith("; 4 clips on cpu, epoch 0, step 0)")


def test_shapes_and_values(dataset: Path) -> None:
    loader = ClipLoader(dataset, RECIPE)
    batch = next(loader)
    tokens = RECIPE.tokens
    assert batch.views.shape == (8, 8, 32, 32, 3) and batch.views.dtype == torch.uint8
    assert batch.visible.shape == (8, tokens.visible)
    assert batch.decoded.shape == (8, tokens.decoded)
    assert batch.loss_weight.shape == (8, tokens.loss)
    assert batch.views.float().std() > 10
    # the views of a clip are crops of the same frames: alike, but not the same
    means = batch.views.float().mean((1, 2, 3))
    assert (means[0] - means[1]).abs().max() < 60
    assert (batch.views[0] != batch.views[1]).any()
    loader.close()


@pytest.mark.parametrize("name", ["refusing", "crashing", "hanging"])
def test_clips_that_fail_are_replaced_named_and_remembered(dataset: Path, expected: list[dict[int, str]], name: str) -> None:
    decoder = getattr(faulty_decoders, name)
    options: dict[str, object] = {"decoder": decoder, "clip_timeout": 3.0}
    taken, state, (loader,) = take(dataset, 3, **options)  # type: ignore[arg-type]
    reason = {"refusing": "damaged", "crashing": "crash", "hanging": "timeout"}[name]
    assert {failure.row for failure in loader.failures} == set(faulty_decoders.BAD_ROWS)
    assert {failure.reason for failure in loader.failures} == {reason}
    assert all(failure.key == loader.manifest.clip(failure.row).key for failure in loader.failures)
    failed = {(failure.epoch, failure.position) for failure in loader.failures}
    for number, step in enumerate(taken):
        for position, value in step.items():
            assert (value == expected[number][position]) == ((0, position) not in failed)

    # the same clips decode today: the ledger replays yesterday's substitutes
    attempts = {where: 1 + max(f.attempt for f in loader.failures if (f.epoch, f.position) == where) for where in failed}
    start = replace(state, epoch=0, step=0, ledger=tuple((*where, n) for where, n in sorted(attempts.items())))
    assert take(dataset, 3, state=start)[0] == taken


@pytest.mark.slow
@pytest.mark.parametrize(
    "decoder", [pytest.param(decode_libav, marks=pytest.mark.slow), faulty_decoders.slow], ids=["full ring", "empty ring"]
)
def test_a_sidecar_killed_from_outside_costs_nothing(dataset: Path, expected: list[dict[int, str]], decoder: Decoder) -> None:
    loader = ClipLoader(dataset, RECIPE, decoder=decoder, clips_per_batch=2)
    taken = []
    for number in range(STEPS):
        step = {}
        for half in range(2):
            batch = next(loader)
            if (number, half) in ((1, 0), (4, 1)):
                time.sleep(0.5)  # the fast decoder fills the ring meanwhile
                loader._process.kill()
                loader._listen(0.1)
                time.sleep(3)  # and its successor does, too, while the batch is still in our hands
            for i, position in enumerate(batch.positions.tolist()):
                of_clip = slice(2 * i, 2 * i + 2)
                parts = (batch.views, batch.visible, batch.decoded, batch.loss_weight)
                step[position] = digest(*(part[of_clip] for part in parts))
        taken.append(dict(sorted(step.items())))
    assert taken == expected
    assert loader.failures == []
    loader.close()


def test_only_the_clip_that_crashes_is_blamed(dataset: Path) -> None:
    *_, (loader,) = take(dataset, 3, decoder=faulty_decoders.crashing_once_in_a_while, workers=4, clips_per_batch=1)
    assert {failure.row for failure in loader.failures} == {11}
    assert {failure.reason for failure in loader.failures} == {"crash"}


def test_changed_bytes_are_not_decoded(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(dataset, copy)
    clip = Manifest(copy).clip(5)
    with (copy / clip.shard).open("r+b") as shard:
        shard.seek(clip.offset + clip.size // 2)
        byte = shard.read(1)
        shard.seek(-1, os.SEEK_CUR)
        shard.write(bytes([byte[0] ^ 1]))
    *_, (loader,) = take(copy, 3)
    assert {(failure.key, failure.reason) for failure in loader.failures} == {(clip.key, "read")}
    assert "are not those of clip" in loader.failures[0].detail


def test_the_ledger_travels_with_the_state(dataset: Path) -> None:
    """Failures in prefetched batches of two ranks, through JSON, to one rank where every clip decodes."""
    refusing = {"decoder": faulty_decoders.refusing, "prefetch": 6}
    loaders = [ClipLoader(dataset, RECIPE, rank=r, world_size=2, **refusing) for r in range(2)]
    for loader in loaders:
        next(loader)
        time.sleep(2.5)
        loader._listen(0)
    state = LoaderState.merged([loader.state() for loader in loaders])
    assert (state.epoch, state.step) == (0, 1)
    for loader in loaders:
        loader.close()
    assert state.ledger
    saved = io.BytesIO()
    torch.save(state.plain(), saved)
    saved.seek(0)
    with_ledger, _, _ = take(dataset, 2, state=torch.load(saved, weights_only=True))  # the epoch's rest, where both had got to
    assert with_ledger == take(dataset, 3, decoder=faulty_decoders.refusing)[0][1:]


def test_too_many_failures_end_the_run(dataset: Path) -> None:
    loader = ClipLoader(dataset, RECIPE, decoder=faulty_decoders.refusing_all)
    with pytest.raises(LoaderError, match=r"17 clips failed .* 17 damaged; the last: .*made to fail"):
        next(loader)
    loader.close()


def test_a_bug_in_the_sidecar_is_shown(dataset: Path) -> None:
    loader = ClipLoader(dataset, RECIPE, decoder=faulty_decoders.broken)
    with pytest.raises(LoaderError, match="KeyError: 'a bug of ours'"):
        next(loader)
    loader.close()


def test_whatever_starts_threads_nothing_is_forked_that_has_them(
    dataset: Path, expected: list[dict[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, threading\nif {'LD_PRELOAD', 'ALWAYS'} & os.environ.keys():\n"
        " threading.Thread(target=threading.Event().wait, name='unwanted', daemon=True).start()"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LD_PRELOAD", "libm.so.6")
    assert take(dataset, 1, workers=1)[0] == expected[:1]
    monkeypatch.setenv("ALWAYS", "1")
    loader = ClipLoader(dataset, RECIPE)
    with pytest.raises(LoaderError, match="has 2 threads, unwanted beside the first, and is not forked"):
        next(loader)
    loader.close()


def test_the_sidecar_leaves_with_its_trainer(dataset: Path) -> None:
    code = (
        "import sys, time; from pipeline.loader import ClipLoader; from pipeline.sampling import SamplingRecipe\n"
        f"loader = ClipLoader({str(dataset)!r}, SamplingRecipe(views_per_step=8))\n"
        "next(loader); print(loader._process.pid, flush=True); time.sleep(100)"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert trainer.stdout is not None
    sidecar = int(trainer.stdout.readline())
    os.kill(sidecar, signal.SIGTERM)  # a scheduler's SIGTERM to all processes is not for it
    time.sleep(0.3)
    os.kill(sidecar, 0)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    for _ in range(100):
        if not Path(f"/proc/{sidecar}").exists():
            return
        time.sleep(0.1)
    pytest.fail("the decoding process outlived its killed trainer")


def test_states_of_other_runs_are_refused(dataset: Path) -> None:
    state = take(dataset, 1)[1]
    with pytest.raises(ValueError, match=r"seed \(was 0, is 5\)"):
        ClipLoader(dataset, replace(RECIPE, seed=5), state=state)
    with pytest.raises(ValueError, match="another dataset"):
        ClipLoader(dataset, RECIPE, state=replace(state, dataset="0123"))
    with pytest.raises(ValueError, match="possible world sizes: 1, 2, 4"):
        ClipLoader(dataset, RECIPE, rank=0, world_size=3)
    with pytest.raises(ValueError, match="rank 2 of world_size 2: allowed are ranks from 0"):
        ClipLoader(dataset, RECIPE, rank=2, world_size=2)
    with pytest.raises(ValueError, match="clips_per_batch 3"):
        ClipLoader(dataset, RECIPE, clips_per_batch=3)


def test_a_loader_of_one_rank_in_a_job_of_several_says_so(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for one that shows clips which were named, such as those of a page's pictures."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    for world_size, sampler, told in ((4, None, 0), (1, None, 1), (1, EvaluationSampler(rows=[3]), 0)):
        with closing(ClipLoader(dataset, RECIPE, world_size=world_size, sampler=sampler)):
            said = capsys.readouterr().err
            assert said.count("warning: WORLD_SIZE is 4, and a loader was made for a world_size of 1") == told


@pytest.mark.slow
def test_what_is_read_ahead_leaves_few_holes() -> None:
    """As the sidecar does it, from 16 threads: 64 MiB of clips take about 110 MiB; from a heap for every thread about 185."""
    code = """
import random, sys, time
from dataclasses import dataclass
from threading import Thread
from queue import Queue
from pathlib import Path
from pipeline.storage.read_ahead import ReadAhead

@dataclass
class Clip:
    shard: str
    offset: int
    size: int

def fetch(shard, start, stop):
    return b"x" * (stop - start)

def read():
    while (clip := queue.get()) is not None:
        ahead.take(clip, time.monotonic() + 60)
    queue.put(None)

draw, queue, offset, windows = random.Random(0), Queue(64), 0, []
ahead = ReadAhead(fetch, lambda clip, data: False, memory=64 << 20, get_bytes=4 << 20, connections=16)
readers = [Thread(target=read) for _ in range(4)]
for reader in readers:
    reader.start()
for _ in range(60):
    windows.append([])
    for _ in range(64):
        windows[-1].append(Clip("shard", offset, draw.randrange(50_000, 950_000)))
        offset += windows[-1][-1].size + 2000
    ahead.announce(windows[-1])
    if len(windows) > 4:
        window = windows.pop(0)
        draw.shuffle(window)
        for clip in window:
            queue.put(clip)
print(next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("RssAnon")))
queue.put(None)
for reader in readers:
    reader.join()
ahead.close()
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(**SIDECAR), capture_output=True, text=True, check=True)
    assert int(done.stdout) < 145, done.stdout
