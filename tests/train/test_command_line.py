"""From a command line to a configuration: that what worked goes on working, and what is said of what does not."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.settings import completed, fields_of, flag, flatten, value_of
from train.command_line import FIRST, Kind, field_texts, from_command_line, spoken
from train.pretrain import main
from train.recipes.pretraining import RECIPES
from train.stages.pretraining import PretrainConfig

# every flag of 28 November 2026; never shortened: somebody's scripts have them
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


def config_of(*arguments: str) -> PretrainConfig:
    return from_command_line(RECIPES, arguments, "tubecell pretrain")


def test_every_flag_of_old_goes_on_working(capsys: pytest.CaptureFixture[str]) -> None:
    words = FROZEN.split()
    config, default = config_of("vit-b-hybrid", *words), config_of("vit-b-hybrid")
    names = [word[2:].replace("-", "_").replace("no_", "") for word in words if word.startswith("--")]
    assert len(names) == 62
    for name in names:
        today = RENAMED_SINCE.get(name, name)
        assert value_of(config, today) != value_of(default, today), name
    told = capsys.readouterr().err
    for old, new in RENAMED_SINCE.items():
        assert f"--{old} is called --{new} now\n" in told
    assert (config.loader.workers, config.views.mixture, config.optim.betas) == (3, (("ssv2", 0.5), ("k710", 2.0)), (0.8, 0.9))
    older = config_of("tiny", "--views.threads", "4", "--views.prefetch=2", "--epochs", "3")
    assert (older.loader.workers, older.loader.prefetch, older.epochs) == (4, 2, 3)


def test_an_older_config_means_what_it_did() -> None:
    older = {"compute": {"workers": 3, "prefetch": 5, "decoder": "libav"}, "steps": 7}
    values = completed(flatten(older), PretrainConfig())
    assert [values[f"loader.{name}"] for name in ("workers", "prefetch", "decoder", "cache")] == [3, 5, "libav", None]
    assert not set(values) & set(RENAMED_SINCE)


def test_flags_override_a_recipe() -> None:
    config = config_of("vit-b-ssv2", "--steps", "20", "--optim.base-lr=1e-3", "--model.encoder_depth", "2", "--steps", "30")
    assert (config.steps, config.optim.base_lr, config.model.encoder_depth) == (30, 1e-3, 2)
    assert math.isclose(config.optim.warmup_share, 40 / 800)
    config = config_of("vit-g-hybrid", "--optim.clip-grad", "None", "--compute.no-compile", "--dry-run", "--no-dry-run")
    assert (config.optim.clip_grad, config.compute.compile, config.dry_run) == (None, False, False)


def test_steps_and_epochs_are_two_ways_to_say_one_thing(capsys: pytest.CaptureFixture[str]) -> None:
    """What the command line gives wins over what the recipe has, whichever of them that is."""
    for arguments, steps, epochs, total in (
        ("tiny", 1500, None, 1500),
        ("tiny --epochs 1", None, 1, 8),
        ("tiny --epochs=3", None, 3, 24),
        ("tiny --steps 5", 5, None, 5),
        ("vit-b-hybrid", None, 200, 1600),
        ("vit-b-hybrid --steps 20", 20, None, 20),
    ):
        config = config_of(*arguments.split())
        assert (config.steps, config.epochs, config.total_steps(8)) == (steps, epochs, total)
    assert main(["tiny", "--steps", "5", "--epochs", "2", "--dry-run"]) == 2
    assert "--steps 5 and --epochs 2: either says how long a run is; give one" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--steps or --epochs is needed"):
        PretrainConfig(epochs=None)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("vit-q", "there is no recipe 'vit-q'; perhaps vit-s-own or vit-b-own"),
        ("--steps 5", "a recipe comes first, as in `tubecell pretrain vit-s-own ...`; `tubecell pretrain --help` lists them"),
        ("tiny extra", "'extra' belongs to no flag: after the recipe come flags and their values; `tubecell pretrain tiny "),
        ("tiny --optim.lr 3", "there is no flag --optim.lr; perhaps --optim.base-lr or "),
        ("tiny --base-lr 3", "there is no flag --base-lr; perhaps --optim.base-lr; `tubecell pretrain tiny --help-all` shows"),
        ("tiny --stpes 3", "there is no flag --stpes; perhaps --steps; "),
        ("tiny -steps 3", "there is no flag -steps; perhaps --steps; "),
        ("tiny --threads 3", "there is no flag --threads; perhaps --loader.workers; "),
        ("tiny --no-steps", "there is no flag --no-steps; perhaps --steps; "),
        ("tiny --steps five", "--steps five must be a whole number, or None, such as 1500"),
        ("tiny --steps 1.5", "--steps 1.5 must be a whole number, or None, such as 1500"),
        ("tiny --steps --seed 3", "--steps needs a value: a whole number, or None, such as 1500"),
        ("tiny --steps=", "--steps '' must be a whole number, or None, such as 1500"),
        ("tiny --steps 5 6", "--steps 5 6 must be a whole number, or None, such as 1500; given are 2"),
        ("tiny --steps -5", "--steps -5 must be at least 1"),
        ("tiny --seed None", "--seed None must be a whole number, such as 0"),
        ("tiny --optim.base-lr -1e-3", "--optim.base-lr -0.001 must be over 0"),
        ("tiny --optim.betas 0.9", "--optim.betas 0.9 must be 2 values, a number and a number, such as 0.9 0.95; given are 1"),
        ("tiny --optim.betas 0.9 x", "--optim.betas 0.9 x must be 2 values, a number and a number, such as 0.9 0.95"),
        ("tiny --optim.betas 0.9 1.5", "--optim.betas 0.9 1.5 must be at least 0 and less than 1"),
        ("tiny --compute.precision bf61", "--compute.precision bf61 is not known; perhaps bf16 or fp16; allowed are bf16, "),
        ("tiny --compute.compile maybe", "--compute.compile maybe is not known; allowed are True, False"),
        ("tiny --views.mixture k710", "--views.mixture k710 must be 2 values, a text and a number, as often as needed; given"),
        ("tiny --views.mixture k710 -1", "--views.mixture: the weight -1.0 of source 'k710' must be a number of at least 0"),
        ("tiny --views.mask-ratio 1.5", "--views.mask-ratio 1.5 of 'tube' masks must hide some of the 64 tubes"),
        ("tiny --views.window 0", "--views.window 0 must be at least 1"),
        ("tiny --views.sampling fast", "--views.sampling 'fast' is not known; allowed are 'manifest' "),
        ("tiny --views.views-per-step 7", "--views.views-per-step 7 must be a multiple of --views.views-per-clip 2, both "),
        ("vit-b-ssv2 --views.decoder-mask-ratio 0.4", "--views.decoder-mask-ratio 0.4 is not possible with running cells"),
        ("vit-b-ssv2 --model.input-size 100", "--model.input-size 100 is no multiple of --model.patch-size 16; set --model.in"),
        ("tiny --loader.workers 0", "--loader.workers 0 must be at least 1; without it, the loader finds one"),
        ("tiny --loader.cache-size much", "--loader.cache-size is 'much'; say how many bytes"),
        ("tiny --config nowhere.toml", "--config nowhere.toml: No such file or directory"),
    ],
)
def test_a_wrong_command_line_is_a_line_that_says_what_to_do(wrong: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        config_of(*wrong.split())
    streams = capsys.readouterr()
    assert (caught.value.code, streams.out, streams.err.count("\n")) == (2, "", 1)
    assert streams.err.startswith(f"pretrain: {said}")


def toml(folder: Path, text: str) -> tuple[str, str]:
    (folder / "run.toml").write_text(text)
    return "--config", str(folder / "run.toml")


def test_a_file_says_what_flags_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = toml(
        tmp_path,
        """
        recipe = "vit-b-hybrid"
        data = "clips"
        steps = 30
        profile_loader = true
        [optim]
        betas = [0.8, 0.9]
        clip_grad = 1
        [views]
        mixture = {ssv2 = 0.5, k710 = 2}
        threads = 3
        [loader]
        cache = "/cache"
        """,
    )
    config = config_of(*file)
    assert (config.data, config.steps, config.epochs) == (str(tmp_path / "clips"), 30, None)
    assert (config.optim.betas, config.optim.clip_grad, config.profile_loader) == ((0.8, 0.9), 1.0, True)
    assert (config.views.mixture, config.views.views_per_step) == ((("ssv2", 0.5), ("k710", 2.0)), 4096)
    assert (config.loader.workers, config.loader.cache) == (3, Path("/cache"))
    assert "run.toml: views.threads is called loader.workers now" in capsys.readouterr().err
    flags = config_of("vit-l-hybrid", *file, "--optim.betas", "0.7", "0.9", "--epochs", "3", "--data", "here")
    assert (flags.data, flags.steps, flags.epochs, flags.optim.betas) == ("here", None, 3, (0.7, 0.9))
    assert flags.views.views_per_step == 6144
    assert config_of("tiny", *toml(tmp_path, 'data = "s3://bucket/x"')).data == "s3://bucket/x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps = ", "is no TOML: "),
        ("[optim]\nlr = 1", "optim.lr is not known; perhaps optim.base_lr"),
        ('config = "other.toml"', "config is not known"),
        ("recipe = 5", "there is no recipe '5'; `tubecell pretrain --help` lists them"),
        ('recipe = "vit-q"', "there is no recipe 'vit-q'; perhaps vit-s-own or vit-b-own"),
        ("steps = 1.5", "steps 1.5 must be a whole number"),
        ("steps = 5\nepochs = 3", "steps 5 and epochs 3 both say how long a run is; give one"),
        ('[compute]\nprecision = "bf61"', "compute.precision bf61 is not known; perhaps bf16"),
        ("[optim]\nbetas = [0.9]", "optim.betas 0.9 must be 2 values"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = toml(tmp_path, text)
    with pytest.raises(SystemExit) as caught:
        config_of(*(() if "recipe" in text else ("tiny",)), *file)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"pretrain: --config {file[1]}: {said}")


def test_the_help_begins_with_a_few_flags_and_can_show_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "vit-g-hybrid" in capsys.readouterr().out
    for arguments in (["--help"], ["tiny", "--help"], ["tiny", "--help-all"], ["--help-all"]):
        with pytest.raises(SystemExit) as caught:
            config_of(*arguments)
        assert caught.value.code == 0
        text = capsys.readouterr().out
        shown = set(re.findall(r"^  (--[\w.-]+)", text, re.MULTILINE))
        everything = set(map(flag, fields_of(PretrainConfig())))
        first = set(map(flag, FIRST)) & everything  # of other stages there are others, such as --features
        assert shown == (everything if "--help-all" in arguments else first) and len(first) == 11, arguments
        assert ("ViT-g on UnlabeledHybrid" in text) == (arguments[0] != "tiny")
        assert ("(default: 1500)" in text) == (arguments[0] == "tiny")
        assert ("`tubecell pretrain tiny --help-all` shows all flags" in text) == (arguments == ["tiny", "--help"])
        assert not re.search("PretrainConfig|None}|overridable|{fixed}", text)


def test_every_field_says_what_it_is_and_can_be_said() -> None:
    """In words that are read back to the same value."""
    for make in RECIPES.values():
        config = make()
        for name, (field, _) in fields_of(config).items():
            value = value_of(config, name)
            assert Kind.of(field.type).read(spoken(value), name) == value
    for group in {name.rpartition(".")[0] for name in fields_of(config)}:
        owner = value_of(config, group) if group else config
        assert all(field_texts(type(owner)).get(name) for name in fields_of(owner) if "." not in name), group


@pytest.mark.slow
def test_torchrun_s_last_words_are_what_is_wrong(tmp_path: Path) -> None:
    """Once, and without a traceback of ours."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "train.pretrain"]
    done = subprocess.run([*command, "vit-b-hybri", "--dry-run"], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    told = "pretrain: there is no recipe 'vit-b-hybri'; perhaps vit-b-hybrid"
    assert done.returncode == 1
    assert done.stderr.count(told) >= 1  # rank 0 may be ended before it has said so
    assert f"traceback : {told}" in done.stderr and "command_line.py" not in done.stderr
