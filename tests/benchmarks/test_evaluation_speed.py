import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import evaluation
from benchmarks.parts.endless_passes import EveryView
from benchmarks.parts.peers import MEAN, STD, ViewItems, missing_reader
from pipeline.decoding.decode import ClipRequest, decode_libav
from pipeline.sampling import SamplingRecipe, multi_view_clips
from pipeline.storage.manifest import Manifest

RECIPE = SamplingRecipe(
    views_per_step=1, views_per_clip=1, sampling="stride:4", num_frames=4, input_size=32, crop="center", masks=None
)


@pytest.mark.parametrize("reader", ["decord2", "PyAV"])
def test_whoever_decodes_them_views_are_the_same(reader: str, dataset: Path, tmp_path: Path) -> None:
    """One decode of a clip, an item a view of our loader, and of the DataLoader, whose pixels are resized another way."""
    if reason := missing_reader(reader):
        pytest.skip(reason)
    manifest, rows = Manifest(dataset), np.array([3, 7])
    together = multi_view_clips(manifest, RECIPE, rows, 2, 3)
    sampler = EveryView(views="full", segments=2, crops=3, rows=rows).of(manifest, RECIPE)
    found = [sampler.clips(0, sampler.positions(mark, 0, 1, 6), np.zeros(6)) for mark in range(0, sampler.epoch_end, 6)]
    assert len(found) == 2
    for place, each in enumerate(found):
        assert each.rows.tolist() == 6 * [rows[place]]
        assert np.array_equal(each.frames, together.frames[place])
        assert np.array_equal(each.boxes[:, 0], together.boxes[place])
    files = evaluation.files(manifest, rows, tmp_path)
    items, views = ViewItems(files, reader, RECIPE, 2, 3), np.empty((6, 4, 32, 32, 3), np.uint8)
    assert len(items) == 12
    decode_libav(ClipRequest(manifest.clip(7), files[1].read_bytes(), together.frames[1], together.boxes[1]), views)
    for place, view in enumerate(views):
        ((peer,), masks) = items[6 + place]
        assert peer.shape == (3, 4, 32, 32) and masks == []
        ours = torch.from_numpy(view).permute(3, 0, 1, 2) / 255
        assert (peer * STD + MEAN - ours).abs().mean() < 0.03


def test_an_evaluation_is_measured(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "tiny", "--views", "2x2", "--clips-per-pass", "3", "--device", "cpu", "--workers", "1"]
    arguments += ["--rounds", "1", "--seconds", "0.05", "--data", str(dataset), "--json", str(tmp_path / "out.json")]
    assert evaluation.main(arguments) == 0
    found = {entry["name"]: entry for entry in json.loads((tmp_path / "out.json").read_text())}
    compared = ["decode/vs_view_items", "whole/vs_model_alone"]
    compared += [] if missing_reader("decord2") else ["decode/vs_dataloader"]
    for name in compared:
        assert found[f"evaluation/{name}"]["unit"] == "views/s" and found[f"evaluation/{name}"]["ratio"] > 0
        assert found[f"evaluation/{name}/cpu"]["unit"] == "CPU s/view"
    assert "loader, 4 views of one decode" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vit-x"], "there is no model 'vit-x'; the models are micro, tiny, vit-s"),
        (["--views", "5"], "--views '5' is not WINDOWSxCROPS, such as 5x3"),
        (["--clips-per-pass", "0"], "--clips-per-pass 0"),
    ],
)
def test_impossible_options_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluation.main(arguments) == 2
    assert message in capsys.readouterr().err
