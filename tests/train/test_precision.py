"""The presets' types, from the patches to the gradients."""

from typing import get_args, get_type_hints

import torch

from tests.train.parallel_cases import MODEL, TOKENS
from train.config import ComputeConfig
from train.parallel import build_model, started
from train.precision import PRECISIONS


def test_the_configuration_names_every_preset() -> None:
    assert set(get_args(get_type_hints(ComputeConfig)["precision"])) == set(PRECISIONS)


def test_types_of_the_paper_preset() -> None:
    """Encoder in float16 up to the latent, decoder and head in float32, parameters and gradients float32 throughout."""
    seen: dict[str, torch.dtype] = {}
    with started("cpu") as ranks:
        model = build_model(MODEL, ComputeConfig(precision="paper"), 0, ranks)
        for name in ("encoder.patch_embed", "encoder.blocks.1", "encoder.norm", "encoder_to_decoder", "decoder.blocks.0"):
            model.get_submodule(name).register_forward_hook(lambda _, given, out, name=name: seen.update({name: out.dtype}))
        views = torch.zeros(1, MODEL.num_frames, 32, 32, 3, dtype=torch.uint8)
        order = torch.arange(MODEL.num_tokens)[None]
        model(views, order[:, : TOKENS.visible], order[:, -TOKENS.decoded :], torch.ones(1, TOKENS.loss)).backward()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}
        del model
    half = ("encoder.patch_embed", "encoder.blocks.1", "encoder.norm")
    assert seen == {name: torch.float16 if name in half else torch.float32 for name in seen}
    assert len(seen) == 5
