"""Lists of action classes in AVA's files, protocol buffers as text: an entry a class, with its name and number.

label { name: "stand" label_id: 12 label_type: PERSON_MOVEMENT }  ava_action_list_v2.2.pbtxt, all 80
item { name: "stand" id: 12 }                                     ..._for_activitynet_2019.pbtxt, the 60 that count
"""

import re
from collections.abc import Sequence

from pipeline.storage.key_frames import Action

ENTRY = re.compile(r'\b\w+\s*\{((?:[^{}"]|"(?:[^"\\]|\\.)*")*)\}')
FIELD = re.compile(r'\b(\w+)\s*:\s*("(?:[^"\\]|\\.)*"|[\w.+-]+)')


def parse_actions(text: str, place: str) -> Sequence[Action]:
    """By number. `place` is what the text is called. Raises ValueError for what is no such list, and for a number twice."""
    found: dict[int, str] = {}
    for entry in ENTRY.finditer(text):
        values = {name: value.strip('"') for name, value in FIELD.findall(entry[1])}
        number = values.get("label_id", values.get("id", ""))
        if not (number.isdecimal() and values.get("name")):
            raise ValueError(f"{place}: an entry without a name and a number: {' '.join(entry[1].split())!r}")
        if int(number) in found:
            raise ValueError(f"{place} has two classes {number}: {found[int(number)]!r} and {values['name']!r}")
        found[int(number)] = values["name"]
    if not found:
        raise ValueError(f'{place} is no list of actions: entries as item {{ name: "stand" id: 12 }} are needed')
    return [Action(number, name) for number, name in sorted(found.items())]
