"""The numbers of the original public codes, stage by stage, through the adapter."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from safetensors.torch import save_file

from model.classifier import VideoClassifier
from model.config import MODELS
from model.weights import metadata_of
from tests.train.localization.made_features import write_features

ADAPTER = Path(__file__).resolve().parent / "stages_adapter.py"
ROOT = ADAPTER.parents[1]
OTHER_COMMANDS = {"load_checkpoint", "hf_forward", "official_forward", "reconstruct", "official_recipe"}
OTHER_COMMANDS |= {"tad_feature_starts", "tad_feature_input"}
OTHER_COMMANDS |= {"ava_enlarge", "ava_jitter", "ava_boxes", "ava_clip_ids", "ava_result_boxes"}
OTHER_COMMANDS |= {"retrieval", "retrieval_video_to_text"}  # of tests/train/test_retrieve.py
OTHER_COMMANDS |= {"ava_forward", "ava_loss", "ava_scores", "ava_map"}
FUNCTIONS = [
    *("load_checkpoint", "hf_forward", "official_forward", "load_for_finetune", "reconstruct"),
    *("finetune_train_ids", "finetune_train_start_range", "finetune_val_ids", "finetune_test_clips"),
    *("sparse_val_ids", "sparse_train_ids", "sparse_train_offsets", "sparse_test_clips"),
    *("randaugment_op", "randaugment_args", "randaugment_plans", "train_view"),
    *("rrc_boxes", "crop_resize", "test_views", "val_box", "val_view", "merge_views", "mean_class_accuracy"),
    *("erasing_boxes", "erase", "mixup", "cutmix_box", "mixup_draws", "soft_target_loss", "label_smoothing_loss"),
    *("finetune_trajectory", "convert_head", "official_recipe", "tad_feature_starts", "tad_feature_input"),
    *("attentive_probe", "knn", "distillation_loss", "retrieval", "retrieval_video_to_text"),
    *("ava_enlarge", "ava_jitter", "ava_boxes", "ava_clip_ids", "ava_result_boxes"),
    *("tad_points", "tad_assign", "tad_focal_loss", "tad_diou_loss", "tad_losses", "tad_forward", "tad_decode", "tad_nms"),
    *("tad_seconds", "tad_item", "tad_truncate", "tad_fuse", "tad_map", "tad_lr"),
    *("ava_forward", "ava_loss", "ava_scores", "ava_map"),
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_stage_gives_the_original_codes_numbers(
    function: str, shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])  # it puts its folder, and the adapter's, first
    suite = suite_in(shared)
    rows = suite.run(suite.load_adapter(ADAPTER), {function}).rows
    assert rows and all(row[0] for row in rows), capsys.readouterr().out


def suite_in(shared: Path) -> Any:
    spec = importlib.util.spec_from_file_location("compare_stages", shared / "parity" / "stages" / "compare_stages.py")
    assert spec and spec.loader
    suite = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(suite)
    return suite


REACHED = """
import os, sys, threading
seen = set()
def called(frame, event, _):
    if event == "call" and frame.f_code not in seen:
        seen.add(frame.f_code)
        if frame.f_code.co_filename.startswith(os.environ["REACHED_ROOT"]):
            with open(os.environ["REACHED"], "a") as file:
                file.write(f"{frame.f_code.co_filename}:{frame.f_code.co_firstlineno}\\n")
sys.setprofile(called)
threading.setprofile(called)
"""  # for every process of a command, the loader's too, as each of them begins


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_the_adapter_calls_commands_reach(
    shared: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fine-tuning, probes, localizing and evaluation: by coverage, in all their processes."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    suite, wanted = suite_in(shared), dict[str, str]()

    def called(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and of_the_product(code) and frame.f_back and frame.f_back.f_code.co_filename == str(ADAPTER):
            wanted[f"{code.co_filename}:{code.co_firstlineno}"] = code.co_qualname

    adapter = suite.load_adapter(ADAPTER)
    sys.setprofile(called)
    try:
        assert all(row[0] for row in suite.run(adapter, {*FUNCTIONS} - OTHER_COMMANDS, quiet=True).rows)
    finally:
        sys.setprofile(None)

    (tmp_path / "sitecustomize.py").write_text(REACHED)
    save_file(VideoClassifier(MODELS["tiny"], 710).state_dict(), tmp_path / "k710.safetensors", metadata_of(MODELS["tiny"]))
    dataset = shutil.copytree(labelled, tmp_path / "dataset")
    (dataset / "label_710to8.json").write_text(json.dumps([*range(8)]))
    features, annotations = write_features(tmp_path / "made", {"train": 6, "val": 2})
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({f"video_val_{number:04}": {"jump": 0.5} for number in range(2)}))
    own = {"localize": ("--features", str(features), "--annotations", str(annotations))}
    localized = "--steps", "1", "--no-save-in-background", "--evaluate-every", "1"
    whole = "--one-class", "--nms.no-per-class", "--sequence.resample", "--judge.external-scores", str(scores)
    data, views = ("--data", str(dataset)), ("--split", "val", "--views", "2x3", "--workers", "1")
    noise = "--augment.erasing", "1", "--augment.randaugment", "rand-m7-n4-mstd0.5-inc1"
    of_run = "--steps", "1", "--views.views-per-step", "8", "--loader.workers", "1", "--no-save-in-background"
    for number, (command, *options) in enumerate(
        [
            ("finetune", "tiny", *of_run, "--evaluate-every", "1", "--ema", "0.9", *noise),
            ("finetune", "tiny", *of_run, "--frames", "tsn", "--init", str(tmp_path / "k710.safetensors")),
            ("probe", "tiny-attentive", *of_run, "--init", str(tmp_path / "k710.safetensors")),
            ("knn", str(tmp_path / "k710.safetensors"), "--split", "val", "--workers", "1"),
            ("distill", "tiny", *of_run, "--teacher", str(tmp_path / "0")),
            ("evaluate", str(tmp_path / "0"), *views),
            ("evaluate", str(tmp_path / "0"), *views, "--sparse", "--resize", "official"),
            ("localize", "tiny", *localized),
            ("localize", "tiny", *localized, *whole),
            ("localize", "evaluate", str(tmp_path / "7"), "--split", "val"),
        ]
    ):
        environment = {
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
            "REACHED": str(tmp_path / "reached"),
            "REACHED_ROOT": str(ROOT),
        }
        words = [
            sys.executable,
            str(ROOT / "train" / f"{command}.py"),
            *options,
            *own.get(command, data),
            "--out",
            str(tmp_path / str(number)),
        ]
        subprocess.run(words, env=os.environ | environment, check=True, capture_output=True)
    reached = {*(tmp_path / "reached").read_text().split()}
    missed = [name for place, name in wanted.items() if place not in reached]
    assert not missed and len(wanted) > 30, missed


def of_the_product(code: CodeType) -> bool:
    return any(code.co_filename.startswith(f"{ROOT / package}{os.sep}") for package in ("model", "pipeline", "train"))
