"""The paper's figures that a dataset is compared with."""

# Table 8 of the paper, in clips; the exact figure where the official lists or the arithmetic give one
TABLE_8 = {"kinetics": 658_340, "something": 168_913, "ava": 21_150, "webvid": 250_000, "instagram": 250_000}
