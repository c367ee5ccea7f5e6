"""Lists of action classes: the three official files, and what is none."""

from pathlib import Path

import pytest

from pipeline.storage.action_list import parse_actions


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("ava_action_list_v2.2.pbtxt", 80),
        ("ava_action_list_v2.2_for_activitynet_2019.pbtxt", 60),
        ("ava_action_list_v2.1_for_activitynet_2018.pbtxt", 60),
    ],
)
def test_the_official_lists(shared: Path, name: str, number: int) -> None:
    found = parse_actions((shared / "annotations" / "ava" / name).read_text(), name)
    assert len(found) == number and found[1] == "bend/bow (at the waist)" and max(found) == 80 and list(found) == sorted(found)


def test_names_may_hold_anything() -> None:
    assert parse_actions('item {\n name: "a { b } id: 7 (c)"\n id: 3 }', "x") == {3: "a { b } id: 7 (c)"}
    assert parse_actions('12,"stand"\n3, sit, or kneel\n', "x") == {3: "sit, or kneel", 12: "stand"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "x: is no action list"),
        ("stand\nsit\n", "x: is no action list"),
        ('item { name: "stand" }', "x: is no action list"),
        ('item { name: "a" id: 1 } item { name: "b" id: 1 }', "x: the action list names 1 twice"),
    ],
)
def test_what_is_no_list(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_actions(text, "x")
