"""Encoded bytes -> uint8 views, by libav or DALI, under one contract. Begin with decode.py."""
