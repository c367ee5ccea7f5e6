import importlib.util
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.parts.flop_counter import flop_counter
from model.videomae import VideoMAE, pixel_loss
from pipeline.loader import ClipLoader
from pipeline.sampling import SamplingRecipe
from tests.pipeline import faulty_decoders
from tests.train.trainers import lines, run
from train.compute.activation_checkpointing import checkpoint_blocks
from train.compute.device_speed import data_sheet_flops, gemm_flops, seconds_of
from train.compute.parallel import started
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig
from train.recipes.pretraining import RECIPES
from train.stages.pretraining import Pretraining, autoencoder_cost
from train.watch.meters import FailureLog, Meters, check_wandb, console_line
from train.watch.step_meter import RankReport, StepMeter, ViewFlops, slowest, view_flops

LINE: dict[str, Any] = {"step": 20, "epoch": 1.5, "loss": 0.5, "lr": 1e-3, "grad_norm": 0.25, "skipped": 0, "time": 1.0}
LINE |= {"views_per_second": 80.0, "views_per_second_of": {"k400": 60.0, "own": 20.0}, "data_wait": 0.02}
LINE |= {"mfu": 0.41, "gemm_share": 0.6, "slowest_rank": 3, "slowest_host": "node7", "slowest_behind": 0.12}


@pytest.mark.parametrize(("recompute", "passes_again"), [("none", 0), ("every:2", 0.5), ("full", 1)])
def test_flops_of_a_step_are_those_of_the_flop_counter(recompute: str, passes_again: float) -> None:
    """But for the gradient of the patches, which nobody asks for, and attention's scores, which flash attention computes
    again in any backward pass: the counter has them, HFU only counts what we asked to be done again."""
    config = replace(RECIPES["tiny"](), compute=ComputeConfig(precision="fp32", activation_checkpointing=recompute))
    model, tokens, B = VideoMAE(config.model), config.sampling.tokens, 2
    blocks = [*model.encoder.blocks, *model.decoder.blocks]
    assert recompute == "none" or len(blocks) % 2 == 0
    checkpoint_blocks(blocks, [bool(passes_again) and i % round(1 / passes_again) == 0 for i in range(len(blocks))])
    views = torch.zeros(B, config.model.num_frames, config.model.input_size, config.model.input_size, 3, dtype=torch.uint8)
    idx = torch.arange(config.model.num_tokens).expand(B, -1)
    with flop_counter() as counter:
        pixel_loss(model, views, idx[:, : tokens.visible], idx[:, : tokens.decoded], torch.ones(B, tokens.loss)).backward()
    flops = view_flops(Pretraining(config))
    patches = 2 * tokens.visible * config.model.patch_values * config.model.encoder_dim
    *shapes, last = autoencoder_cost(config.model, tokens, PRECISIONS["fp32"]).shapes
    scores = sum(2 * shape.tokens**2 * shape.dim for shape in shapes) + 2 * tokens.loss * last.tokens * last.dim
    assert counter.get_total_flops() == pytest.approx(B * (flops.model + flops.recompute - patches + scores), rel=1e-9)
    assert bool(flops.recompute) == bool(passes_again)


def test_a_line_of_a_real_loader(dataset: Path) -> None:
    """12 clips, every other one of a second source; the first epoch takes each once."""
    flops = ViewFlops(model=2e6, recompute=1e6)
    with started("cpu") as ranks:
        loader = ClipLoader(dataset, RECIPES["tiny"]().sampling, workers=1, clips_per_batch=4)
        loader.manifest.sources, loader.manifest.source = ["even", "odd"], np.arange(12, dtype=np.int16) % 2
        meter = StepMeter(loader, ranks, dtype=torch.float32, flops=flops, peak=1e12, gemm=5e11)
        batches = [meter.next_batch() for _ in range(loader.batches_per_step)]
        line = meter.line(steps=1)
        loader.close()
    rows = np.concatenate([batch.rows.numpy() for batch in batches])
    assert len(rows) == 8
    views = {name: rate * line["seconds"] for name, rate in line["views_per_second_of"].items()}
    assert views == pytest.approx({"even": 2 * (rows % 2 == 0).sum(), "odd": 2 * (rows % 2).sum()})
    assert line["views_per_second"] * line["seconds"] == pytest.approx(16)
    assert line["mfu"] * 1e12 == pytest.approx(line["views_per_second"] * 2e6)
    assert line["hfu"] * 1e12 == pytest.approx(line["views_per_second"] * 3e6)
    assert line["gemm_share"] == pytest.approx(2 * line["hfu"])
    assert 0 < line["data_wait"] <= 1  # the first batch has to be waited for
    assert (line["slowest_rank"], line["slowest_behind"]) == (0, 0)


def test_two_ranks_are_one_line(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path / "run", "--steps", "3", ranks=2)
    for line in lines(tmp_path / "run" / "metrics.jsonl"):
        assert sum(line["views_per_second_of"].values()) == pytest.approx(line["views_per_second"])
        assert line["slowest_rank"] in (0, 1)
        assert line["slowest_host"]
    start = json.loads((tmp_path / "run" / "environment.json").read_text())[0]
    assert start["gemm_tflops"] > 1e-3
    assert line["gemm_share"] == pytest.approx(line["tflops"] / start["gemm_tflops"])


def report(seconds: float = 10.0, wait: float = 0.0, busy: float | None = None, gemm: float | None = None) -> RankReport:
    return RankReport(host="node", seconds=seconds, wait=wait, busy=busy, gemm=gemm, memory_gib=1.0, clips=(1,))


def test_the_slowest_rank_is_named_by_its_own_time() -> None:
    """Not by a step's length, which is the same for all."""
    assert slowest([report(busy=8.0), report(busy=5.0), report(busy=4.0, wait=1.0)]) == (0, pytest.approx(0.6))
    assert slowest([report(busy=5.0), report(busy=5.0), report(busy=5.0, wait=2.0)]) == (2, pytest.approx(0.4))
    # a GPU at four fifths of the others' clock: they would take 8 of the 10 seconds
    assert slowest([report(gemm=5e14), report(gemm=4e14), report(gemm=5e14)]) == (1, pytest.approx(0.25))
    # one that waits for data 3 of the 10 seconds, and computes 7 as all do
    assert slowest([report(gemm=5e14), report(gemm=5e14), report(gemm=5e14, wait=3.0)]) == (2, pytest.approx(3 / 7))


def test_the_console_has_what_matters() -> None:
    text = console_line(LINE)
    assert text == (
        "loss 0.5 · lr 1.00e-03 · grad 0.25 · 80.0 views/s · MFU 41.0% · 60.0% of GEMM rate · waiting for data 2% · "
        "rank 3 (node7) 12% behind"
    )
    quiet = console_line({**LINE, "loss": None, "mfu": None, "slowest_behind": 0.04, "skipped": 2})
    assert "loss none" in quiet and "MFU" not in quiet and "rank" not in quiet and quiet.endswith("2 skipped")


def write(meters: Meters, line: dict[str, Any]) -> None:
    meters.log(line)
    meters.show(line)


def test_a_run_that_goes_on_writes_over_what_it_did_not_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meters = Meters(tmp_path, total_steps=100, step=0)
    for step in (10, 20, 30):
        write(meters, {**LINE, "step": step})
    meters.close()
    meters = Meters(tmp_path, total_steps=100, step=20)
    write(meters, {**LINE, "step": 30, "loss": 0.25, "mfu": None})
    meters.picture("reconstruction", tmp_path / "x.png", np.zeros((4, 6, 3), np.uint8), 30)
    meters.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path / "metrics.jsonl")] == [(10, 0.5), (20, 0.5), (30, 0.25)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(10, 0.5), (20, 0.5), (30, 0.25)]
    assert [event.value for event in events.Scalars("speed/views_per_second_of/own")] == [20.0] * 3
    assert [event.step for event in events.Scalars("speed/mfu")] == [10, 20]
    assert events.Images("reconstruction")[0].width == 6
    assert not [tag for tag in events.Tags()["scalars"] if "slowest_host" in tag]
    assert {tag.partition("/")[0] for tag in events.Tags()["scalars"]} == {"train", "optimizer", "speed"}
    assert "step 30/100 · loss 0.25" in capsys.readouterr().out


def test_gemm_rate_leaves_the_run_s_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    assert gemm_flops(torch.device("cpu"), torch.float32, size=64) > 1e6
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gpu_multiplies_for_as_long_as_a_power_limit_needs_to_act(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waits = 0.0, 0

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.time = 0.0

        def record(self) -> None:
            self.time = clock

        def synchronize(self) -> None:
            nonlocal waits
            waits += 1

        def elapsed_time(self, end: "Event") -> float:
            return 1e3 * (end.time - self.time)

    def product() -> None:
        nonlocal clock
        clock += 1 / 512

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert seconds_of(product, torch.device("cuda")) == 1 / 512
    assert (clock, waits) == (8 / 512 + 0.5, 2)
    assert seconds_of(product, torch.device("cuda"), seconds=0) == 1 / 512  # as between lines of the log: eight, no more
    assert (clock, waits) == (16 / 512 + 0.5, 3)


def test_a_slice_of_a_card_has_no_data_sheet() -> None:
    bf16 = PRECISIONS["bf16"]
    assert data_sheet_flops("NVIDIA H100 80GB HBM3", bf16) == 989e12
    assert data_sheet_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb", bf16) is None


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_that_is_not_installed() -> None:
    check_wandb(None)
    with pytest.raises(ValueError, match="--wandb mine: wandb is not installed; run `pip install wandb`"):
        check_wandb("mine")


@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = set()
    for step in (0, 10):
        meters = Meters(tmp_path, total_steps=100, step=step, wandb="mine", config={"seed": 3})
        write(meters, {**LINE, "step": step + 10})
        meters.close()
        ids.add((tmp_path / "wandb_id").read_text())
    assert len(ids) == 1
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


def test_old_failures_are_forgotten_and_each_is_logged_once(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step's clips were is still known, and nothing that a state needs is missing."""
    recipe = SamplingRecipe(views_per_step=8, views_per_clip=2, input_size=32, patch_size=8, num_frames=8)
    options: dict[str, Any] = {"decoder": faulty_decoders.refusing, "prefetch": 2, "max_failure_share": 1.0}
    monkeypatch.setattr("pipeline.loader.MOST_FAILURES", 5)
    monkeypatch.setattr("pipeline.loader.MOST_REMEMBERED", 4)
    with closing(ClipLoader(dataset, recipe, **options)) as loader:
        log = FailureLog(tmp_path, loader)
        for step in range(18):
            batch = next(loader)
            log.flush()
            assert loader.keys(*divmod(step, 3)) == [loader.manifest.clip(row).key for row in batch.rows.tolist()]
        logged = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
        assert len(logged) == loader.num_failures >= 12 > 10 >= max(len(loader.failures), len(loader._ledger))
        attempts = {(line["epoch"], line["position"]): line["attempt"] + 1 for line in logged}
        assert len({(line["epoch"], line["position"], line["attempt"]) for line in logged}) == len(logged)
        assert loader.state()["ledger"] == [[*where, n] for where, n in sorted(attempts.items()) if where >= (6, 0)]
