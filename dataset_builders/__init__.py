"""Raw videos and official annotations -> tar shards and a manifest."""
