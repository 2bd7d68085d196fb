"""How long ``fed-diffmic serve`` takes, and what it does when it is asked too much.

``python -m benchmarks.serve [--model DIR] [--clients 1,4,16] [--requests 40] [--queue 8]``: a server process on
loopback, so many clients that each ask as soon as they were answered, on a picture of noise. Prints for each number of
clients the requests answered a second, the median and 95th percentile of the seconds of those answered 200, and how
many were turned away (503). Without ``--model`` the preset ``compact`` with random weights.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from fed_diffmic.config.compose import compose
from fed_diffmic.config.spec import make_spec
from fed_diffmic.files import tensors_digest
from fed_diffmic.release.final import FinalModel, write_final
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.stages import initial_state

CLASSES = ("a", "b", "c", "d", "e", "f", "g")
ANSWER_S = 120


def random_model(folder: Path, preset: str) -> None:
    """A finished run that was never trained."""
    config = compose(None, [f"model={preset}", "model.pretrained=false", "run.device=cpu"])
    spec = make_spec(config, classes=CLASSES, task="multiclass", run_id="noise", arm="federated", device="cpu")
    guidance = initial_state(spec, "guidance")
    states = {"guidance": guidance, "diffusion": initial_state(spec, "diffusion", guidance)}
    fitted = Calibration(spec.task, 1.0, 0.0, tuple([1 / len(CLASSES)] * len(CLASSES)))
    digests = {stage: tensors_digest(state) for stage, state in states.items()}
    write_final(folder, FinalModel(spec, states, dict.fromkeys(states, fitted), [], 0, digests))


def picture(side: int = 512) -> bytes:
    """Noise as a JPEG."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def ask(address: str, data: bytes, clients: int, requests: int) -> tuple[list[float], int, float]:
    """Seconds of each answer, how many were turned away, and seconds in all."""
    taken: list[float] = []
    away = [0]
    lock = threading.Lock()

    def one() -> None:
        with httpx.Client(timeout=ANSWER_S) as client:
            for _ in range(requests):
                started = time.perf_counter()
                code = client.post(address, content=data, headers={"content-type": "image/jpeg"}).status_code
                with lock:
                    if code == 200:
                        taken.append(time.perf_counter() - started)
                    elif code == 503:
                        away[0] += 1
                    else:
                        raise SystemExit(f"an answer of {code}")
                if code == 503:
                    time.sleep(0.1)

    threads = [threading.Thread(target=one) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken, away[0], time.perf_counter() - started


def main() -> None:
    """Start, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--queue", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or Path(scratch)
        if options.model is None:
            random_model(folder, options.preset)
        command = [str(Path(sys.executable).parent / "fed-diffmic"), "serve", "--model", str(folder), "--port", "0"]
        command += ["--queue", str(options.queue), *([] if options.model else ["--unsigned"])]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                address = ""
                for line in process.stderr or ():
                    found = re.search(r"listening on (\S+)", line)
                    if found:
                        address = f"{found[1]}v1/predict"
                        break
                if not address:
                    raise SystemExit("the server did not start")
                data = picture()
                ask(address, data, 1, 3)  # what is loaded once
                print(f"{'clients':>7} {'answered/s':>10} {'p50 s':>7} {'p95 s':>7} {'answered':>8} {'503':>5}")
                for clients in map(int, options.clients.split(",")):
                    taken, away, seconds = ask(address, data, clients, options.requests)
                    middle, late = np.quantile(taken, [0.5, 0.95])
                    rate = len(taken) / seconds
                    print(f"{clients:7d} {rate:10.2f} {middle:7.3f} {late:7.3f} {len(taken):8d} {away:5d}", flush=True)
            finally:
                process.terminate()


if __name__ == "__main__":
    main()
