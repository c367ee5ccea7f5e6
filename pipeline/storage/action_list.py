"""Lists of action classes in AVA's files: protocol buffers as text, an entry a class, or CSV.

label { name: "stand" label_id: 12 label_type: PERSON_MOVEMENT }  ava_action_list_v2.2.pbtxt, all 80
item { name: "stand" id: 12 }                                     ..._for_activitynet_2019.pbtxt, the 60 that count
12,stand
"""

import re

ENTRY = re.compile(r'\b(?:label|item)\s*\{((?:[^{}"]|"(?:[^"\\]|\\.)*")*)\}')
NAME = re.compile(r'\bname\s*:\s*"((?:[^"\\]|\\.)*)"')
NUMBER = re.compile(r"\b(?:label_)?id\s*:\s*(\d+)")


def parse_actions(text: str, place: str) -> dict[int, str]:
    """The names of classes by their numbers. `place` is what the text is called. Raises ValueError for what is no such list,
    and for a number twice."""
    found: dict[int, str] = {}
    if entries := ENTRY.findall(text):
        pairs = [(NUMBER.search(NAME.sub("", entry)), NAME.search(entry)) for entry in entries]
        named = [(number[1], name[1].replace('\\"', '"')) for number, name in pairs if number and name]
    else:
        rows = [[part.strip().strip('"') for part in line.split(",", 1)] for line in text.splitlines() if line.strip()]
        named = [(row[0], row[1]) for row in rows if len(row) == 2 and row[0].isdigit()]
    for number, name in named:
        if int(number) in found:
            raise ValueError(f"{place}: the action list names {number} twice")
        found[int(number)] = name
    if not found or min(found) < 1:
        raise ValueError(f'{place}: is no action list: wanted are blocks label {{ name: "stand" label_id: 12 }}')
    return dict(sorted(found.items()))
