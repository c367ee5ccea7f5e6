"""The page of `tubecell demo` in a browser, from the drop of a video to what stands there."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from model.classifier import VideoClassifier
from model.config import MODELS
from model.initialization import initialise
from model.videomae import VideoMAE
from model.weights import metadata_of
from tests.pipeline.encoding import encode, numbered_frame
from train import predict
from train.demos.server import temporary_uploads

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TINY = MODELS["tiny"]
NAMES = ["<img src=x onerror='window.hacked = 1'>", "${window.hacked = 2} {{value}}", "c"]
EVIL = "${window.hacked = 3}{{value}} <img src=x onerror=window.hacked=4>.mp4"
PATIENCE = 120_000  # milliseconds, on a busy machine
DROP = """([data, name]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, {type: "video/mp4"}));
  return transfer;
}"""


def test_uploads_go_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with temporary_uploads() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder) and folder.is_dir()
        (folder / "upload").touch()
    assert not folder.exists() and "GRADIO_TEMP_DIR" not in os.environ


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program with two small models, in an empty folder of its own, and its address."""
    pytest.importorskip("gradio")
    classifier, autoencoder = VideoClassifier(TINY, 3), VideoMAE(TINY)
    for seed, model in enumerate((classifier, autoencoder)):
        initialise(model, seed)
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors", metadata=metadata_of(TINY, NAMES))
    save_file(autoencoder.state_dict(), tmp_path / "mae.safetensors", metadata=metadata_of(TINY))
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "tubecell", "demo", "classifier.safetensors", "mae.safetensors", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp"), "http_proxy": "http://127.0.0.1:9"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            url = next(line.split()[0] for line in process.stdout if line.startswith("http://127.0.0.1:"))
            yield process, url
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)  # beside other programs
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at the page with")
def test_a_dropped_video_is_answered(server: Any, tmp_path: Path, capsys: Any) -> None:
    """Classes as those of `predict`; a damaged file is a sentence, and the next one is answered; nothing is asked of another
    machine; no name of a file or class is taken for code; SIGTERM leaves no file."""
    api = pytest.importorskip("playwright.sync_api")
    process, url = server
    video = encode([numbered_frame(number) for number in range(190)], gop=20)
    (tmp_path / "x.mp4").write_bytes(video)
    weights, out = tmp_path / "classifier.safetensors", tmp_path / "predictions"
    assert predict.main([str(tmp_path / "x.mp4"), "--weights", str(weights), "--out", str(out), "--json"]) == 0
    classes = json.loads(capsys.readouterr().out)["classes"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        asked: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        assert "3 classes with" in page.inner_text(".head")

        def drop(name: str, data: bytes) -> None:
            if (clear := page.get_by_label("Clear")).count():
                clear.first.click()
                page.wait_for_selector("#prediction .waiting")
            transfer = page.evaluate_handle(DROP, [base64.b64encode(data).decode(), name])
            page.dispatch_event(
                "#video button:has(input[type=file]), #video [aria-dropeffect]", "drop", {"dataTransfer": transfer}
            )

        drop("damaged.mp4", video[:3000])
        assert "An MP4 file without its index" in page.inner_text("#prediction .refusal")
        drop("empty.mp4", b"")
        assert "The file is empty" in page.inner_text("#prediction .refusal:has-text('empty')")
        drop(EVIL, video)
        page.wait_for_selector("#reconstruction .film >> nth=3")
        values = page.locator("#prediction .bars .value").all_inner_texts()
        assert values == [f"{100 * each['probability']:.1f}%" for each in classes]
        assert page.locator("#prediction .bars .name").all_inner_texts() == [each["class"] for each in classes]
        assert page.locator("#prediction svg").count() == 3 and page.locator("#prediction rect").count() == 18
        error = page.inner_text("#reconstruction .bars .best .value")
        moves = page.evaluate("getComputedStyle(document.querySelector('.film')).animationName")
        assert moves == "film" and "90% hidden" in page.inner_text("#reconstruction")
        page.get_by_text("Settings").click()
        page.get_by_label("Seed:").fill("7")
        page.wait_for_function("old => document.querySelector('#reconstruction .best .value').innerText != old", arg=error)
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert (tmp_path / "page.png").stat().st_size > 10_000
        assert page.evaluate("window.hacked") is None and not errors
        assert len(asked) > 5 and not [each for each in asked if not each.startswith((url, "data:", "blob:"))]
        assert any((tmp_path / "tmp").glob("tubecell-demo-*/*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        browser.close()
    assert not list((tmp_path / "tmp").glob("tubecell-demo-*"))
