"""Who does what in a frame: files of boxes with actions, how good detections are, and the page that shows it (detect.py,
evaluate.py, score_detections.py)."""
