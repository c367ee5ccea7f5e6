"""Movies whose frame N is a flat grey of level 16 + N, and annotations of them."""

from pathlib import Path

from small_videos import run_ffmpeg

ACTIONS = """label {
  name: "stand"
  label_id: 12
  label_type: PERSON_MOVEMENT
}
label { name: "talk to (e.g., self)" label_id: 79 }
"""
COUNTED = 'item {\n  name: "stand"\n  id: 12\n}\n'


def make_movie(path: Path, frames: int = 180, rate: int = 30, size: str = "64x48", first: int = 0, gop: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = f"nullsrc=size={size}:rate={rate},geq=lum='{16 + first}+N':cb=128:cr=128"
    coding = ("-c:v", "libx264", "-preset", "ultrafast", "-qp", "1", "-g", str(gop), "-bf", "2", "-pix_fmt", "yuv420p")
    run_ffmpeg("-f", "lavfi", "-i", grey, *coding, "-frames:v", str(frames), path)
    return path


def write_lists(folder: Path, **files: str) -> Path:
    """The official names -> texts."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ava_action_list_v2.2.pbtxt").write_text(ACTIONS)
    (folder / "ava_action_list_v2.2_for_activitynet_2019.pbtxt").write_text(COUNTED)
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    return folder
