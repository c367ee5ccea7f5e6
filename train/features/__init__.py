"""Features of sliding windows over videos (extract_features.py): windows and views first, then videos, stream and folder."""
