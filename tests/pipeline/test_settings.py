"""What a field means for those who lack it, what may change, and what things were called."""

from dataclasses import asdict, dataclass, field

import pytest

from pipeline.settings import completed, fields_of, flag_name, kept, read, renamed, setting, translated, with_values
from train.command_line import flags_of
from train.stages.pretraining import PretrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    begun: int = 1
    later: str = setting("train", was=None)
    free: float = setting(0.5, may_change=True)
    fixed: int = setting(1, may_change=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    number: int
    group: Group = field(default_factory=Group)
    tuning: Group = setting(default_factory=Group, may_change=True)


WHOLE = Whole(number=3)


def test_what_a_file_lacks_means_what_code_then_did_or_the_default() -> None:
    older = completed({"number": 3, "group.begun": 2}, WHOLE)
    assert (older["group.later"], older["tuning.later"], older["group.free"]) == (None, None, 0.5)
    assert completed({"number": 3, "group.later": "val"}, WHOLE)["group.later"] == "val"


def test_what_was_begun_stays_unless_another_is_named() -> None:
    older = completed({"number": 3}, WHOLE)
    assert kept(older, WHOLE) == {"group.later": None, "tuning.later": None}
    assert kept(older, WHOLE, {"group.later"}) == {"tuning.later": None}  # named, though it is the default
    assert kept(older, with_values(WHOLE, {"group.later": "val"})) == {"tuning.later": None}
    gone_on = with_values(WHOLE, kept(older, WHOLE))
    assert (gone_on.group.later, gone_on.group.begun, gone_on.number) == (None, 1, 3)


def test_a_field_says_itself_whether_it_may_change() -> None:
    may = {name for name, (_, may) in fields_of(WHOLE).items() if may}
    assert may == {"group.free", "tuning.begun", "tuning.later", "tuning.free"}
    frozen = {name for name, (_, may) in fields_of(PretrainConfig()).items() if not may}
    # matched whole: `steps_per_view` would not be free because `steps` is
    assert {name.partition(".")[0] for name in frozen} == {
        *("seed", "init", "model", "views", "mask", "decoder_mask", "target", "loss", "loss_on", "teacher", "ema", "freeze"),
        *("official_script", "optim"),
    }
    assert {name for name in frozen if name.startswith("optim.")} == {"optim.optimizer"}
    assert "loader.workers" not in frozen and "views.window" in frozen


def test_reading_what_other_code_wrote() -> None:
    assert read(Group, {"begun": 4}, "it") == Group(begun=4, later=None)  # type: ignore[arg-type]
    assert read(Group, asdict(Group()), "it") == Group()
    with pytest.raises(ValueError, match="it has sooner, which this tubecell does not know; update it"):
        read(Group, {"sooner": 1}, "it")


def test_old_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert renamed({"views.threads": 4, "seed": 1}) == {"loader.workers": 4, "seed": 1}
    assert translated(["--views.threads", "4", "--out=--views.threads"]) == ["--loader.workers", "4", "--out=--views.threads"]
    assert translated(["--views.threads=4"]) == ["--loader.workers=4"]
    assert capsys.readouterr().err.count("--views.threads is called --loader.workers now\n") == 2
    assert flag_name("--compute.no-reshard-after-forward=1") == "compute.reshard_after_forward"
    assert (flag_name("--"), flag_name("-x"), flag_name("tiny")) == (None, None, None)
    assert flags_of(["tiny", "--views.threads", "4", "--no-save-in-background"]) == {"loader.workers", "save_in_background"}
