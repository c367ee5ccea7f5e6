"""Raw videos and official annotations -> tar shards and a manifest.

Begin with build_dataset.py, then building/build.py. `sources` says which clips are wanted, `media` makes a clip of a video,
`tars` writes and reads shards, `building` carries a build through, `checking` looks at a finished one, `pages` reports it.
"""
