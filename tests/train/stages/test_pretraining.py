from dataclasses import replace

import pytest
import torch
from torch.nn.functional import l1_loss, mse_loss, smooth_l1_loss

from benchmarks.parts.step_work import pretraining, random_batch
from model.config import MODELS, Implementation
from model.initialization import initialise
from model.pixels import normalise, patches_of
from pipeline.sampling import Views
from train.config import ComputeConfig
from train.stages.pretraining import PretrainConfig, Pretraining

MODEL = MODELS["tiny"]
CPU = torch.device("cpu")


def stage_of(**changes: object) -> Pretraining:
    config = pretraining(MODEL, ComputeConfig(precision="fp32"), views=4).config
    return Pretraining(replace(config, **changes))  # type: ignore[arg-type]


def test_targets_are_pixels_normalised_or_as_they_are() -> None:
    batch = random_batch(MODEL, 4, 0.5, CPU)
    assert batch.visible is not None and batch.decoded is not None
    all_patches = patches_of(batch.views, MODEL.patch_size, MODEL.tubelet_size)
    wanted = all_patches.gather(1, batch.decoded[..., None].expand(-1, -1, MODEL.patch_values)).float() / 255
    patches, targets = stage_of(target="plain-pixels").target(batch.views, batch.visible, batch.decoded, torch.float32)
    assert torch.equal(targets, wanted)
    seen = all_patches.gather(1, batch.visible[..., None].expand(-1, -1, MODEL.patch_values))
    assert torch.equal(patches, normalise(seen))
    same_patches, normalised = stage_of().target(batch.views, batch.visible, batch.decoded, torch.float32)
    assert torch.equal(patches, same_patches)
    channels = wanted.unflatten(-1, (-1, 3))
    by_hand = (channels - channels.mean(-2, keepdim=True)) / (channels.std(-2, keepdim=True) + 1e-6)
    torch.testing.assert_close(normalised, by_hand.flatten(-2), rtol=0, atol=2e-5)


@pytest.mark.parametrize("loss_on", ["invisible", "all"])
@pytest.mark.parametrize(("loss", "error"), [("mse", mse_loss), ("l1", l1_loss), ("smooth-l1", smooth_l1_loss)])
def test_the_loss_is_what_its_name_says_of_the_tokens_that_are_asked_for(loss: str, error, loss_on: str) -> None:  # type: ignore[no-untyped-def]
    stage, batch = stage_of(loss=loss, loss_on=loss_on), random_batch(MODEL, 4, 0.5, CPU)
    model = stage.model(Implementation())
    initialise(model, 0)
    assert batch.visible is not None and batch.decoded is not None and batch.loss_weight is not None
    with torch.no_grad():
        found, _ = stage.loss(model, batch, None)
        patches, targets = stage.target(batch.views, batch.visible, batch.decoded, torch.float32)
        predicted = model(patches, batch.visible, batch.decoded, batch.decoded.shape[1])
    compared = batch.decoded.shape[1] if loss_on == "all" else batch.loss_weight.shape[1]
    assert compared == stage.config.tokens.loss
    assert (compared == stage.config.tokens.decoded) == (loss_on == "all")
    torch.testing.assert_close(found, error(predicted[:, :compared], targets[:, :compared]))


def test_all_decoded_tokens_cost_more() -> None:
    every, hidden = (stage_of(loss_on=which).cost(ComputeConfig(precision="fp32")) for which in ("all", "invisible"))
    assert every.gmac > hidden.gmac and every.errors > hidden.errors
    assert "128 in the loss" in every.notes["tokens of a view"]


def test_what_cannot_differ_or_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="--loss-on all: with --views"):
        PretrainConfig(model=MODEL, loss_on="all", views=Views(decoder_mask_ratio=0.0))
    with pytest.raises(ValueError, match="pictures are made of --target pixels, and it is plain-pixels"):
        PretrainConfig(model=MODEL, target="plain-pixels", reconstruct_every=5)
