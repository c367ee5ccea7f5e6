import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.config import MODELS
from model.initialization import initialise
from model.pixels import gather_patches
from model.videomae import VideoMAE
from pipeline import keyed
from pipeline.decoding.decode import DecodeError
from pipeline.loader import ClipLoader
from pipeline.sampling import DecoderMaskRule, MaskRule, SamplingRecipe, sample_clips
from pipeline.sampling.masks.rules import RULES
from pipeline.storage.manifest import Manifest
from tests.train.trainers import SMALL, losses, run
from train import visualize
from train.command_line import from_command_line
from train.compute.optimizer import set_lr
from train.compute.parallel import started
from train.evaluation import Evaluations
from train.loop import step
from train.pictures import unpatchify
from train.recipes.pretraining import RECIPES
from train.stages.pretraining import Pretraining
from train.stages.reconstructions import centre_views, reconstruct
from train.training import Training

RECIPE = SamplingRecipe(views_per_step=8, views_per_clip=2, input_size=64, patch_size=8, num_frames=8)


@pytest.mark.parametrize(("masks", "decoder_masks"), [("tube", "running-cell"), ("random", "frame")])
def test_pasted_pixels_are_the_input_where_the_encoder_saw_it(
    masks: MaskRule, decoder_masks: DecoderMaskRule, dataset: Path
) -> None:
    config, recipe = MODELS["tiny"], replace(RECIPE, masks=masks, decoder_masks=decoder_masks)
    model = VideoMAE(config)
    initialise(model, seed=0)
    views = centre_views(Manifest(dataset), recipe, 3)
    assert views.shape == (3, 8, 64, 64, 3)
    shown, seen, pasted, means, error, error_of_means = reconstruct(model, recipe, views)
    assert np.array_equal(shown, views.numpy())
    hidden = RULES[masks].draw(keyed.mix(0, keyed.MASK, np.arange(3)), recipe.grid, 0.9).reshape(3, 4, 8, 8)
    where = np.kron(~hidden, np.ones((2, 8, 8), bool))  # (clips, frames, 64, 64)
    assert where.mean() == pytest.approx(recipe.tokens.visible / 256)
    assert np.array_equal(seen[where], views.numpy()[where])
    assert np.array_equal(pasted[where], views.numpy()[where])
    assert (np.unique(seen[~where]) == [128]).all()
    of_patches = means.reshape(3, 4, 2, 8, 8, 8, 8, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7)[hidden]
    assert np.ptp(of_patches, axis=(1, 2, 3)).max() == 0 and np.array_equal(means[where], views.numpy()[where])
    assert error_of_means == pytest.approx(127 / 128, abs=0.02) and error > error_of_means
    assert pasted[~where].std() > 0 and (pasted[~where] > 0).mean() > 0.9  # where no decoder mask asks, it would be black


def test_patches_and_back() -> None:
    config = MODELS["tiny"]
    views = torch.randint(0, 256, (2, 8, 64, 64, 3), dtype=torch.uint8)
    every = torch.arange(config.num_tokens).expand(2, -1)
    patches = gather_patches(views, every, config.patch_size, config.tubelet_size).float() / 255
    assert np.array_equal(unpatchify(patches, config), views.numpy())


def test_a_clip_that_cannot_be_decoded_is_left_out(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "dataset")
    manifest = Manifest(tmp_path / "dataset")
    whole = centre_views(manifest, RECIPE, 6)
    first = manifest.clip(int(sample_clips(manifest, RECIPE, 0, np.zeros(1, np.int64), np.zeros(1, np.int64)).rows[0]))
    with (tmp_path / "dataset" / first.shard).open("r+b") as shard:
        shard.seek(first.offset)
        shard.write(bytes(first.size))
    assert torch.equal(centre_views(manifest, RECIPE, 5), whole[1:])
    for shard in (tmp_path / "dataset" / "shards").glob("*.tar"):
        shard.write_bytes(b"")
    with pytest.raises((DecodeError, OSError)):
        centre_views(manifest, RECIPE, 5)


def test_pictures_of_the_sharded_model_are_of_its_weights_and_leave_them_alone(dataset: Path, tmp_path: Path) -> None:
    """Drawn between two steps, after the weights were moved."""
    config = from_command_line(RECIPES, [*SMALL, "--data", str(dataset)])
    weights = []
    for drawn in (False, True):
        with started("cpu") as ranks:
            loader = ClipLoader(dataset, config.sampling, workers=1)
            stage = Pretraining(replace(config, reconstruct_every=2))
            training = Training(stage, ranks)
            model = training.model
            set_lr(training.optimizer, 1e-2)
            (tmp_path / "run").mkdir(exist_ok=True)
            evaluations = Evaluations(stage, training, tmp_path / "run", loader.manifest, first_step=0, total_steps=3)
            for number in range(1, 4):
                step(training, number, lambda loader=loader: next(loader))
                if drawn:
                    evaluations.after(number, None)
                if drawn and number == 2:
                    plain = VideoMAE(config.model)
                    plain.load_state_dict({name: tensor.full_tensor() for name, tensor in model.state_dict().items()})
                    views = centre_views(loader.manifest, config.sampling, 6)
                    mine, theirs = (reconstruct(m, config.sampling, views)[2] for m in (model, plain))
                    assert np.abs(mine.astype(int) - theirs).max() <= 1
            weights.append([parameter.full_tensor().clone() for parameter in model.parameters()])
            loader.close()
            del model, training, evaluations
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.slow
def test_a_run_draws_itself_on_two_ranks(dataset: Path, tmp_path: Path) -> None:
    options = ("--steps", "5", "--compute.precision", "bf16")
    run(dataset, tmp_path / "plain", *options, ranks=2)
    run(dataset, tmp_path / "drawn", *options, "--reconstruct-every", "2", "--profile", "2:3", ranks=2)
    assert losses(tmp_path / "drawn") == losses(tmp_path / "plain")
    files = sorted(file.name for file in (tmp_path / "drawn" / "reconstructions").iterdir())
    assert files == ["step-00000002.png", "step-00000004.png"]
    with Image.open(tmp_path / "drawn" / "reconstructions" / files[1]) as picture:
        assert min(picture.size) > 300 and np.asarray(picture.convert("L")).std() > 10
    assert sorted(file.name for file in (tmp_path / "drawn" / "profile").iterdir()) == ["steps-2-3.json.gz", "steps-2-3.txt"]


def test_errors_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert visualize.main([str(tmp_path)]) == 2
    assert "train first: tubecell STAGE" in capsys.readouterr().err
    assert visualize.main([]) == 2


def test_a_dataset_that_was_moved_or_named_from_another_folder(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(dataset, tmp_path / "here" / "data")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(Path("data"), tmp_path / "run", "--steps", "2")
    config = tmp_path / "run" / "config.json"
    assert json.loads(config.read_text())["data"] == "data"
    monkeypatch.chdir(tmp_path / "there")
    assert visualize.main([str(tmp_path / "run")]) == 0
    (tmp_path / "run" / "reconstruction.png").unlink()
    (tmp_path / "here" / "data").rename(tmp_path / "moved")
    assert visualize.main([str(tmp_path / "run")]) == 2
    assert f"is not at data or {tmp_path}/here/data; say with --data where it lies now" in capsys.readouterr().err
    assert visualize.main([str(tmp_path / "run"), "--data", str(tmp_path / "moved"), "--clips", "2"]) == 0
    assert (tmp_path / "run" / "reconstruction.png").exists()
