import math
import re
from typing import Any

import pytest

from pipeline.sampling import Views
from train import recipes
from train.augmentation import AugmentConfig
from train.config import ComputeConfig, LoaderConfig, OptimConfig
from train.pretrain import main
from train.run.dry_run import describe
from train.stages.finetuning import FinetuneConfig
from train.stages.pretraining import PretrainConfig, Pretraining


@pytest.mark.parametrize(
    ("name", "views", "peak", "final", "epochs", "steps", "clip"),
    [  # global clips x 4, effective lr and min lr, epochs, steps with 1.348 M clips: the official scripts
        ("vit-b-hybrid", 4096, 4e-3, 4e-5, 200, 1316 * 200, None),
        ("vit-l-hybrid", 6144, 6e-3, 6e-5, 300, 877 * 300, None),
        ("vit-h-hybrid", 8192, 8e-3, 8e-5, 300, 197_400, None),
        ("vit-g-hybrid", 8192, 4.8e-3, 8e-5, 300, 197_400, 0.02),
    ],
)
def test_official_recipes(
    name: str, views: int, peak: float, final: float, epochs: int, steps: int, clip: float | None
) -> None:
    config = recipes.RECIPES[name]()
    assert config.views.views_per_step == views
    assert config.peak_lr == pytest.approx(peak, rel=1e-12)
    assert config.final_lr == pytest.approx(final, rel=1e-12)
    total = config.total_steps(1_348_000 // (views // 4))
    assert (config.epochs, total) == (epochs, steps)
    assert config.warmup_steps(total) == total // 10
    assert config.optim.clip_grad == clip
    assert (config.optim.betas, config.optim.weight_decay) == ((0.9, 0.95), 0.05)
    assert (config.views.mask_ratio, config.views.decoder_mask_ratio) == (0.9, 0.5)


def test_dry_run_of_vit_g(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vit-g-hybrid", "--dry-run"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for figure in ("1,026,306,560", "241.61 GMAC", "237.32 executed", "197,400", "peak 4.80e-03", "64 forward passes of 128"):
        assert figure in text
    assert re.search(r"2\.3 ZFLOP which takes [\d.,]+ GPU-days, ", text)
    assert "on 64 ranks 128 views a rank and step in 1 forward pass of 128" in text


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_can_be_described_and_says_where_it_is_from(name: str) -> None:
    assert "parameters" in describe(Pretraining(recipes.RECIPES[name]()), 1)
    documentation = recipes.RECIPES[name].__doc__ or ""
    assert any(word in documentation.lower() for word in ("table", "script", "ours"))


@pytest.mark.parametrize(
    ("world_size", "views", "per_forward", "expected"),
    [(64, 8192, 128, 1), (8, 8192, 128, 8), (1, 24, 16, 2), (1, 20, 16, 5), (3, 24, 128, 1), (2, 40, 12, 5)],
)
def test_accumulation_takes_the_fewest_equal_passes(world_size: int, views: int, per_forward: int, expected: int) -> None:
    config = PretrainConfig(views=Views(views_per_step=views), compute=ComputeConfig(views_per_forward=per_forward))
    passes = config.accumulation(world_size)
    assert passes == expected
    assert views / world_size / passes <= per_forward


def test_mismatches_name_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"views-per-step 24 are 6 clips of 4 views, which 4 ranks .* 1, 2, 3, 6"):
        PretrainConfig(views=Views(views_per_step=24)).accumulation(4)
    with pytest.raises(ValueError, match="views-per-forward 2 must be at least"):
        PretrainConfig(compute=ComputeConfig(views_per_forward=2)).accumulation(1)
    with pytest.raises(ValueError, match="warmup-share 1"):
        PretrainConfig(optim=OptimConfig(warmup_share=1.0))
    with pytest.raises(ValueError, match="epochs 0"):
        PretrainConfig(epochs=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clip_grad": 0.0}, "--optim.clip-grad 0.0 must be over 0; None leaves gradients as they are"),
        ({"clip_grad": -1.0}, "--optim.clip-grad -1.0"),
        ({"base_lr": 0.0}, "--optim.base-lr 0.0 must be over 0"),
        ({"base_lr": math.nan}, "--optim.base-lr nan"),
        ({"base_min_lr": -1e-6}, "--optim.base-min-lr -1e-06 must be at least 0"),
        ({"weight_decay": -0.05}, "--optim.weight-decay"),
        ({"eps": 0.0}, "--optim.eps 0.0 must be over 0"),
        ({"betas": (0.9, 1.0)}, "--optim.betas 0.9 1.0 must be at least 0 and less than 1"),
        ({"spike_factor": 1.0}, "--optim.spike-factor 1.0 must be over 1"),
        ({"max_skipped": 0}, "--optim.max-skipped 0 must be at least 1"),
    ],
)
def test_a_number_that_would_train_nothing_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        OptimConfig(**change)


def test_every_field_is_read() -> None:
    """No dead configuration: each field's name appears in the code that uses it, as an attribute."""
    import ast
    from dataclasses import fields
    from pathlib import Path

    root = Path(__file__).parents[2]
    read = {
        node.attr
        for file in [file for package in ("model", "pipeline", "train") for file in root.glob(f"{package}/**/*.py")]
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    for config in (PretrainConfig, FinetuneConfig, AugmentConfig, Views, OptimConfig, ComputeConfig, LoaderConfig):
        assert {field.name for field in fields(config)} - read == set(), config.__name__
