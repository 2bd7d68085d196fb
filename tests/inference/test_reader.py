"""The reader's page in a real browser: an image is chosen by a script, and what stands on the page then is read.

Slow, and skipped with a word where Chromium is not installed (Debian: ``apt-get install chromium``).
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import threading
from html import unescape

import pytest
import uvicorn
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from fed_diffmic.inference.card import model_card
from fed_diffmic.inference.predictions import predict_files
from fed_diffmic.inference.service import PAGE, ServiceSettings, make_service
from tests.inference.tiny import CLASSES, draw_images, tiny_model, tiny_predictor
from tests.reporting.test_browser import BROWSER, QUIET

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: the page was not opened in a browser"),
]
DRIVE = """
addEventListener("load", async () => {
  const sample = await (await fetch("/sample")).blob();
  const files = new DataTransfer();
  files.items.add(new File([sample], "x.png", { type: "image/png" }));
  document.getElementById("file").files = files.files;
  document.getElementById("file").dispatchEvent(new Event("change"));
  const until = Date.now() + 30000;
  const look = () => {
    const said = document.getElementById("state").textContent;
    if (said === "Done." && "LAYER") document.querySelector("input[value=LAYER]").click();
    if (said && said !== "Reading the image …") document.title = "finished";
    else if (Date.now() < until) setTimeout(look, 50);
  };
  look();
});
"""


@contextlib.contextmanager
def served(sample: bytes, layer: str = "", **card):
    """The application with a page that chooses an image by itself; its address."""
    predictor = tiny_predictor()
    told = {**model_card(tiny_model(predictor.spec)), **card}
    app = make_service(predictor, told, ServiceSettings())

    async def driven(request):
        text = (PAGE / "index.html").read_text().replace("</head>", '<script src="/drive.js" defer></script></head>')
        return HTMLResponse(text)

    async def drive(request):
        return Response(DRIVE.replace("LAYER", layer), media_type="text/javascript")

    async def image(request):
        return Response(sample, media_type="image/png")

    app.router.routes += [Route("/driven", driven), Route("/drive.js", drive), Route("/sample", image)]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/driven"
        server.should_exit = True
        thread.join(20)


def opened(address, tmp_path, width, picture=None):
    what = ["--dump-dom"] if picture is None else [f"--screenshot={picture}"]
    done = subprocess.run(
        [str(BROWSER), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1400",
         "--virtual-time-budget=60000", *what, address],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def words(dom):
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", dom)))


@pytest.mark.parametrize("width", [1280, 390])
def test_an_image_is_read_and_shown_with_what_is_said_of_it(tmp_path, width):
    (path,) = draw_images(tmp_path / "images", 1)
    found = predict_files(tiny_predictor(), [str(path)])
    with served(path.read_bytes(), "regions") as address:
        dom, console = opened(address, tmp_path, width)
    text = words(dom)
    assert console == []
    assert "<title>finished</title>" in dom
    assert f"Decided: {found.decided_names()[0][0]}" in text
    for name, share in zip(CLASSES, found.probabilities[0], strict=True):
        shown = "below 0.1" if share < 0.001 else "above 99.9" if share > 0.999 else f"{100 * share:.1f}"
        assert re.search(rf"{name} +{re.escape(shown)}\s%", text), (name, share, text)
    assert "Nobody signed this model" in text and "not a medical device" in text
    assert not re.search(r'<p[^>]*id="unsigned"[^>]*hidden', dom)


def test_an_image_that_cannot_be_read_leaves_nothing_of_another_beside_it(tmp_path):
    with served(b"junk", signed_by="1-2-3") as address:
        dom, _ = opened(address, tmp_path, 800)
    assert "not an image in a known format" in words(dom)
    assert re.search(r'<section[^>]*id="result"[^>]*hidden', dom)
    assert re.search(r'<p[^>]*id="unsigned"[^>]*hidden', dom)


def test_what_a_model_calls_its_classes_is_text(tmp_path):
    """Nothing that the model or its card says becomes markup."""
    (path,) = draw_images(tmp_path / "images", 1)
    evil = "<img src=x onerror=document.title='broken'>"
    with served(path.read_bytes(), run=evil, sites=[evil]) as address:
        dom, console = opened(address, tmp_path, 800)
    assert "<title>broken</title>" not in dom and "<img" not in dom and console == []


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours ``#rrggbb`` (WCAG 2.2, relative luminance)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_words_stand_out_from_their_ground():
    style = (PAGE / "page.css").read_text()
    ink, soft, blue, back = (re.search(rf"--{name}: (#\w{{6}})", style)[1] for name in ("ink", "soft", "blue", "back"))
    for words_, ground in ((ink, back), (soft, back), (soft, "#ffffff"), ("#a3170f", back), (ink, "#fff8e6"),
                           (ink, "#fdecea")):  # fmt: skip
        assert contrast(words_, ground) >= 4.5
    assert contrast(blue, "#ffffff") >= 3 and contrast(blue, "#e6eaef") >= 3  # WCAG 1.4.11, what is no text
