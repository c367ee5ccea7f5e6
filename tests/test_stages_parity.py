"""The numbers of the original public codes, stage by stage, through the adapter."""

import importlib.util
import sys
from pathlib import Path

import pytest

ADAPTER = Path(__file__).resolve().parent / "stages_adapter.py"
FUNCTIONS = [
    *("load_checkpoint", "hf_forward", "official_forward", "load_for_finetune", "reconstruct"),
    *("finetune_train_ids", "finetune_train_start_range", "finetune_val_ids", "finetune_test_clips"),
    *("sparse_val_ids", "sparse_train_ids", "sparse_train_offsets", "sparse_test_clips"),
    *("rrc_boxes", "crop_resize", "test_views", "val_box", "val_view", "merge_views", "mean_class_accuracy"),
    *("erasing_boxes", "erase", "mixup", "cutmix_box", "mixup_draws", "soft_target_loss", "label_smoothing_loss"),
    *("finetune_trajectory", "convert_head"),
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_stage_gives_the_original_codes_numbers(
    function: str, shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])  # it puts its folder, and the adapter's, first
    spec = importlib.util.spec_from_file_location("compare_stages", shared / "parity" / "stages" / "compare_stages.py")
    assert spec and spec.loader
    suite = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(suite)
    rows = suite.run(suite.load_adapter(ADAPTER), {function}).rows
    assert rows and all(row[0] for row in rows), capsys.readouterr().out
