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
    assert len(found) == number and found[0].name == "bend/bow (at the waist)" and found[-1].id == 80
    assert [action.id for action in found] == sorted(action.id for action in found)


def test_names_may_hold_anything() -> None:
    (found,) = parse_actions('item {\n name: "a { b } id: 7 (c)"\n id: 3 }', "x")
    assert (found.id, found.name) == (3, "a { b } id: 7 (c)")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "x is no list of actions"),
        ("stand\nsit\n", "x is no list of actions"),
        ('item { name: "stand" }', "x: an entry without a name and a number: 'name: \"stand\"'"),
        ('item { name: "a" id: 1 } item { name: "b" id: 1 }', "x has two classes 1: 'a' and 'b'"),
    ],
)
def test_what_is_no_list(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_actions(text, "x")
