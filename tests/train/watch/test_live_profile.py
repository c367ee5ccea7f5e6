import json
import time
from pathlib import Path

from pipeline.loader import ClipLoader
from pipeline.sampling import SamplingRecipe
from tests.train.trainers import run
from train.watch import live_profile
from train.watch.live_profile import LiveProfile

RECIPE = SamplingRecipe(views_per_step=8, views_per_clip=2, input_size=32, patch_size=8, num_frames=8)  # 4 clips, 3 steps


def test_a_run_writes_a_report_of_itself(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(dataset, out, "--steps", "6", "--profile-loader")
    found = json.loads((out / "loader_profile" / "report.json").read_text())
    assert found["title"] == "tubecell pretrain --profile-loader"
    assert found["figures"]["clips"] == 6 * 4
    assert found["rates"]["together"]["median"] > 0
    assert (out / "loader_profile" / "report.html").read_text().startswith("<!doctype html>")
    assert json.loads((out / "config.json").read_text())["profile_loader"] is True


def test_a_report_is_written_now_and_then_and_costs_little(dataset: Path, tmp_path: Path) -> None:
    loader = ClipLoader(dataset, RECIPE, workers=1, prefetch=2)
    profile = LiveProfile(tmp_path, "pretrain", loader, rank=3, device="cpu", machine="two cores")
    file = tmp_path / "loader_profile" / "rank-3" / "report.json"
    next(loader)
    profile.write()
    assert not file.exists()  # a rate takes two batches
    next(loader)
    profile.write_if_due()
    assert not file.exists()
    profile._due = began = time.perf_counter()
    profile.write_if_due()
    took = time.perf_counter() - began
    assert json.loads(file.read_text())["figures"]["clips"] == 8
    file.unlink()
    profile.write_if_due()  # not before 200 times as long has passed
    assert not file.exists()
    assert profile._due - time.perf_counter() > 0.9 * took / live_profile.COST - 1
    next(loader)
    profile.write()  # the end of the run
    assert json.loads(file.read_text())["settings"]["cost_of_the_report"] > 0
    loader.close()
