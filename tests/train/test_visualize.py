from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import MODELS
from model.initialization import initialise
from model.patches import gather_patches
from model.videomae import VideoMAE
from pipeline import keyed
from pipeline.manifest import Manifest
from pipeline.masking import tube_masks
from pipeline.sampling import SamplingRecipe
from train import visualize

RECIPE = SamplingRecipe(views_per_step=8, views_per_clip=2, input_size=64, patch_size=8, num_frames=8)


def test_pasted_pixels_are_the_input_where_the_encoder_saw_it(dataset: Path) -> None:
    config = MODELS["tiny"]
    model = VideoMAE(config)
    initialise(model, seed=0)
    views = visualize.centre_views(Manifest(dataset), RECIPE, 3)
    assert views.shape == (3, 8, 64, 64, 3)
    with torch.no_grad():
        seen, pasted = visualize.reconstruct(model, RECIPE, views)
    hidden = tube_masks(keyed.mix(0, keyed.MASK, np.arange(3)), RECIPE.grid, 0.9)[:, :64].reshape(3, 8, 8)
    shown = np.kron(~hidden, np.ones((8, 8), bool))[:, None].repeat(8, 1)  # (clips, frames, 64, 64)
    assert shown.mean() == pytest.approx(7 / 64)
    assert np.array_equal(seen[shown], views.numpy()[shown])
    assert np.array_equal(pasted[shown], views.numpy()[shown])
    assert (np.unique(seen[~shown]) == [128]).all()
    assert pasted[~shown].std() > 0


def test_patches_and_back() -> None:
    config = MODELS["tiny"]
    views = torch.randint(0, 256, (2, 8, 64, 64, 3), dtype=torch.uint8)
    every = torch.arange(config.num_tokens).expand(2, -1)
    patches = gather_patches(views, every, config.patch_size, config.tubelet_size).float().unflatten(-1, (-1, 3)) / 255
    assert np.array_equal(visualize.unpatchify(patches, config), views.numpy())


def test_errors_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert visualize.main([str(tmp_path)]) == 2
    assert "train first: python train/pretrain.py" in capsys.readouterr().err
    assert visualize.main([]) == 2
