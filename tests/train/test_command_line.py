"""From a command line to a configuration: that what worked goes on working, and what is said of what does not."""

import pytest

from pipeline.settings import completed, flatten, value_of
from train.recipes import from_command_line
from train.stages.pretraining import PretrainConfig

# every flag of 28 November 2026, and what it gives a field; never shortened: somebody's scripts have them
FROZEN = """
--data DATASET  --out RUN  --steps 7  --seed 3  --log-every 7  --save-every 50  --no-save-in-background  --keep-last 3
--keep-every 100  --mirror s3://bucket/run  --wandb project  --reconstruct-every 9  --profile 10:15  --profile-loader
--dry-run  --expected-clips 99
--model.input-size 128  --model.num-frames 8  --model.patch-size 32  --model.tubelet-size 1  --model.encoder-dim 64
--model.encoder-depth 3  --model.encoder-heads 2  --model.decoder-dim 32  --model.decoder-depth 1  --model.decoder-heads 1
--model.mlp-ratio 2.5
--views.views-per-step 8  --views.views-per-clip 2  --views.mask-ratio 0.75  --views.decoder-mask-ratio 0.25
--views.shuffle window  --views.lanes 4  --views.window 16  --views.mixture ssv2 0.5 k710 2  --views.sampling fps:4
--views.fresh-windows  --views.arithmetic 1
--optim.base-lr 1e-3  --optim.base-min-lr 1e-6  --optim.warmup-share 0.2  --optim.weight-decay 0.1  --optim.betas 0.8 0.9
--optim.eps 1e-7  --optim.clip-grad 1.5  --optim.spike-factor 4  --optim.max-skipped 5
--compute.precision fp16  --compute.views-per-forward 4  --compute.activation-checkpointing every:2  --compute.shard 2
--compute.reshard-after-forward  --compute.defer-gradients  --compute.memory-gib 24  --compute.compile True
--compute.tokens reference  --compute.attention cudnn  --compute.align-mlp False  --compute.device cpu
--compute.decoder libav  --compute.workers 3  --compute.prefetch 5
"""
RENAMED_SINCE = {f"compute.{name}": f"loader.{name}" for name in ("decoder", "workers", "prefetch")}


def test_every_flag_of_old_goes_on_working(capsys: pytest.CaptureFixture[str]) -> None:
    words = FROZEN.split()
    config = from_command_line(["vit-b-hybrid", *words])
    default = from_command_line(["vit-b-hybrid"])
    names = [word[2:].replace("-", "_").replace("no_", "") for word in words if word.startswith("--")]
    assert len(names) == 62
    for name in names:
        today = RENAMED_SINCE.get(name, name)
        assert value_of(config, today) != value_of(default, today), name
    told = capsys.readouterr().err
    for old, new in RENAMED_SINCE.items():
        assert f"--{old} is called --{new} now\n" in told
    assert from_command_line(["tiny", "--epochs", "3"]).epochs == 3
    assert (config.loader.workers, config.views.mixture, config.optim.betas) == (3, (("ssv2", 0.5), ("k710", 2.0)), (0.8, 0.9))
    threads = from_command_line(["tiny", "--views.threads", "4", "--views.prefetch=2"])
    assert (threads.loader.workers, threads.loader.prefetch) == (4, 2)


def test_an_older_config_means_what_it_did() -> None:
    older = {"compute": {"workers": 3, "prefetch": 5, "decoder": "libav"}, "steps": 7}
    values = completed(flatten(older), PretrainConfig())
    assert [values[f"loader.{name}"] for name in ("workers", "prefetch", "decoder", "cache")] == [3, 5, "libav", None]
    assert not [name for name in values if name.startswith("compute.") and name in RENAMED_SINCE]
