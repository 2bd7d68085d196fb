"""The service: what it says is what ``predict`` says; what it refuses, it refuses by name; nothing is kept."""

import asyncio
import io
import json
import logging
import os

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from fed_diffmic.inference.card import model_card
from fed_diffmic.inference.openapi import openapi
from fed_diffmic.inference.predictions import predict_files
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.inference.service import ASSETS, ServiceSettings, make_service
from tests.inference.tiny import CLASSES, SIDE, draw_images, tiny_model, tiny_predictor, tiny_spec

LOOPBACK = "http://127.0.0.1"


def client_of(predictor=None, **settings):
    predictor = predictor or tiny_predictor()
    app = make_service(predictor, model_card(tiny_model(predictor.spec)), ServiceSettings(**settings))
    return TestClient(app, base_url=LOOPBACK)


@pytest.fixture(scope="module")
def client():
    return client_of()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    (path,) = draw_images(tmp_path_factory.mktemp("images"), 1)
    return path


def send(client, data, kind="image/png", query="", **headers):
    return client.post(f"/v1/predict{query}", content=data, headers={"content-type": kind, **headers})


def test_the_answer_is_that_of_predict_bit_for_bit(client, image):
    found = predict_files(tiny_predictor(), [str(image)])
    said = send(client, image.read_bytes()).json()
    assert list(said["probabilities"].values()) == found.probabilities[0].tolist()
    assert said["decided"] == found.decided_names()[0][0]
    assert said["classes"] == list(CLASSES)
    assert sum(said["prior"].values()) == pytest.approx(1)
    assert "look" not in said and "image" not in said


def test_the_look_is_of_the_class_asked_for_else_of_the_most_probable(client, image):
    usual = send(client, image.read_bytes(), query="?look=1").json()
    seen = usual["look"]
    assert seen["class"] == max(usual["probabilities"], key=usual["probabilities"].get)
    assert seen["side"] == SIDE
    assert len(seen["regions"]) == 2
    assert sum(region["weight"] for region in seen["regions"]) == pytest.approx(1, abs=1e-5)
    other = next(name for name in CLASSES if name != seen["class"])
    assert (
        send(client, image.read_bytes(), query=f"?look=1&class={other}").json()["look"]["saliency"]
        != (seen["saliency"])
    )


def test_a_plain_classifier_shows_the_image_alone(image):
    from fed_diffmic.inference.predictor import Predictor
    from fed_diffmic.training.stages import initial_state

    spec = tiny_spec()
    plain = Predictor(spec, "plain", initial_state(spec, "plain"), tiny_predictor().fitted)
    seen = send(client_of(plain), image.read_bytes(), query="?look=1").json()["look"]
    assert "saliency" not in seen and len(seen["pixels"]) == 4 * SIDE * SIDE


@pytest.mark.parametrize(
    ("data", "kind", "query", "status", "code"),
    [
        (b"", "image/png", "", 400, "empty"),
        (b"not an image", "image/png", "", 422, "unknown_format"),
        (b"x" * 2000, "image/png", "", 413, "size"),
        (b"x", "text/plain", "", 415, "type"),
        (b"x", "image/", "", 415, "type"),
        (b"x", "multipart/form-data; boundary=a", "", 415, "type"),
        (b"x", "", "", 415, "type"),
        (b"x", "image/png", "?look=2", 400, "query"),
        (b"x", "image/png", "?class=nobody", 400, "query"),
    ],
)
def test_what_is_refused_is_refused_by_name(data, kind, query, status, code):
    answer = send(client_of(most_bytes=1000), data, kind, query)
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert answer.json()["message"]


def test_no_body_that_claims_to_be_small_may_grow():
    def parts():
        for _ in range(100):
            yield b"x" * 100

    answer = client_of(most_bytes=1000).post("/v1/predict", content=parts(), headers={"content-type": "image/png"})
    assert answer.status_code == 413


def test_a_body_that_says_it_is_too_large_is_not_waited_for():
    headers = {"content-type": "image/png", "content-length": str(2**30)}
    answer = client_of(most_bytes=1000).post("/v1/predict", content=b"x", headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (413, "size")


def test_a_token_is_asked_for_where_there_is_one(image):
    client = client_of(token="a" * 40)
    data = image.read_bytes()
    assert send(client, data, authorization=f"Bearer {'a' * 40}").status_code == 200
    for said in ({}, {"authorization": f"Bearer {'a' * 39}"}, {"authorization": f"Basic {'a' * 40}"},
                 {"authorization": "a" * 40}, {"authorization": "Bearer é".encode()}):  # fmt: skip
        refused = send(client, data, **said)
        assert (refused.status_code, refused.json()["error"]) == (401, "token")
    for path in ("/v1/model", "/metrics"):
        assert client.get(path).status_code == 401
    for path in (*ASSETS, "/health", "/openapi.json"):
        assert client.get(path).status_code == 200


def test_another_name_of_this_machine_is_refused(client, image):
    answer = client.post("http://evil.example/v1/predict", content=image.read_bytes())
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("[::1]:8600", 200),
        ("[::1]", 200),
        ("LOCALHOST:1", 200),
        ("[::2]", 400),
        ("localhost.evil.example", 400),
        ("[", 400),
    ],
)
def test_names_and_addresses_of_every_kind_are_told_apart(host, status):
    client = client_of(hosts=("::1", "localhost"))
    assert client.get("/health", headers={"host": host}).status_code == status


def test_bodies_that_come_are_counted_before_a_byte_is_kept(image):
    """Three of which nobody sends the end, where two may be there: the third is told at once."""

    async def main():
        app = client_of(queue=1).app
        transport = httpx.ASGITransport(app=app)
        gate = asyncio.Event()

        async def slow():
            yield image.read_bytes()
            await gate.wait()

        async with httpx.AsyncClient(transport=transport, base_url=LOOPBACK) as client:
            first = [
                asyncio.ensure_future(client.post("/v1/predict", content=slow(), headers={"content-type": "image/png"}))
                for _ in range(2)
            ]
            await asyncio.sleep(0.05)
            third = await client.post("/v1/predict", content=b"x", headers={"content-type": "image/png"})
            gate.set()
            answers = await asyncio.gather(*first)
            again = await client.post("/v1/predict", content=b"x", headers={"content-type": "image/png"})
        return third, [answer.status_code for answer in answers], again.status_code

    third, others, again = asyncio.run(main())
    assert (third.status_code, third.json()["error"]) == (503, "busy")
    assert others == [200, 200] and again == 422


def test_a_page_of_another_origin_may_not_ask(client):
    """Its browser asks first whether it may, as for every content type that is taken here."""
    asked = client.options(
        "/v1/predict",
        headers={"origin": "https://evil.example", "access-control-request-method": "POST",
                 "access-control-request-headers": "content-type"},
    )  # fmt: skip
    assert asked.status_code == 405
    assert not [name for name in asked.headers if name.startswith("access-control")]
    answer = client.get("/health", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_every_answer_keeps_the_page_to_itself(client):
    for answer in (client.get("/"), client.get("/nowhere"), send(client, b"", "image/png")):
        assert answer.headers["cache-control"] == "no-store"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_the_page_asks_nobody_else(client):
    for path in ASSETS:
        text = client.get(path).text
        assert "http://" not in text and "https://" not in text and "style=" not in text and "onclick" not in text


def test_a_full_queue_and_time_that_is_over_are_said(image, monkeypatch):
    client = client_of(queue=0, wait_s=1e-9)
    late = send(client, image.read_bytes())
    assert (late.status_code, late.json()["error"]) == (504, "time")
    client.app.state.service.desk.waiting = 1
    busy = send(client, image.read_bytes())
    assert (busy.status_code, busy.json()["error"], busy.headers["retry-after"]) == (503, "busy", "2")
    assert client.get("/health").status_code == 503


def test_a_defect_says_its_kind_and_nothing_of_what_was_sent(image, monkeypatch, caplog):
    import fed_diffmic.inference.service as service

    def broken(*_):
        raise RuntimeError("the name of a patient")

    monkeypatch.setattr(service, "predict_content", broken)
    with caplog.at_level(logging.DEBUG):
        answer = send(client_of(), image.read_bytes())
    assert (answer.status_code, answer.json()["error"]) == (500, "defect")
    assert "RuntimeError" in caplog.text and "patient" not in caplog.text + answer.text


def test_counts_name_nobody(image):
    client = client_of()
    send(client, image.read_bytes())
    send(client, b"junk")
    text = client.get("/metrics").text
    assert 'fed_diffmic_requests_total{path="/v1/predict",status="200"} 1.0' in text
    assert 'fed_diffmic_requests_total{path="/v1/predict",status="422"} 1.0' in text
    assert image.name not in text


def test_nothing_is_written(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    client = client_of()
    assert send(client, image.read_bytes(), query="?look=1").status_code == 200
    assert os.listdir(tmp_path) == []


def malformed(seed):
    """A picture in some format with some of its bytes changed, cut or repeated."""
    rng = np.random.default_rng(seed)
    stream = io.BytesIO()
    kind = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")[seed % 8]
    Image.fromarray(rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)).save(stream, kind)
    data = bytearray(stream.getvalue())
    for _ in range(int(rng.integers(1, 30))):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    cut = int(rng.integers(1, len(data) + 1))
    return bytes(data[:cut]) + bytes(data[: int(rng.integers(0, 50))])


def many_malformed(count):
    client = client_of()
    for seed in range(count):
        answer = send(client, malformed(seed), "application/octet-stream")
        assert answer.status_code in (200, 422), (seed, answer.text)
    assert client.get("/health").json() == {"status": "ok"}


def test_malformed_images_are_findings():
    many_malformed(300)


@pytest.mark.slow
def test_ten_thousand_malformed_images_are_findings():
    many_malformed(10_000)


def test_the_document_names_what_is_served(client):
    document = client.get("/openapi.json").json()
    served = {route.path for route in client.app.routes}
    assert set(document["paths"]) <= served
    assert document == json.loads(json.dumps(openapi(CLASSES, 32 * 2**20, False)))
    schema = document["paths"]["/v1/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(schema["required"]) <= set(schema["properties"])


def test_the_card_says_what_the_run_says():
    from dataclasses import replace

    spec = tiny_spec()
    rows = [
        {"stage": "diffusion", "round": n, "best_round": 1, "sites": {"b": {}, "a": {}}, "mean": {"loss": 0.1 * n}}
        for n in (1, 2)
    ]
    card = model_card(replace(tiny_model(spec), history=rows, signed_by="SHA256:x"))
    assert (card["rounds"], card["chosen_round"], card["validation"]) == (2, 1, {"loss": 0.1})
    assert card["sites"] == ["a", "b"] and card["signed_by"] == "SHA256:x"
    assert card["prior"] == dict(zip(CLASSES, tiny_model(spec).calibration["diffusion"].prior, strict=True))
    assert "not a medical device" in card["notice"]


def test_answers_of_a_sites_own_part_are_named_by_the_weights_that_gave_them(image):
    """The run's own digest stays that of the model that is the same everywhere."""
    model = tiny_model(tiny_spec())
    state = model.states["diffusion"]
    name = next(name for name, value in state.items() if value.dtype == np.float32 and value.ndim)
    own = {name: state[name] + np.float32(1)}
    shared, kept = (Predictor(model.spec, "diffusion", state, model.calibration["diffusion"], own=o) for o in ({}, own))
    for predictor in (shared, kept):
        client = client_of(predictor)
        said = send(client, image.read_bytes()).json()
        assert said["model"]["digest"] == client.get("/v1/model").json()["digest"] == predictor.digest
    assert shared.digest == model.digests["diffusion"] != kept.digest
