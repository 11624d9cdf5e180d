"""The API of `infineg serve`: a real process, real HTTP."""

import base64
import contextlib
import io
import os
import re
import signal
import socket
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from support.corpus import encode as encode_picture
from support.corpus import png_header, quadrants, with_orientation
from support.processes import call_infineg, free_port
from support.serving import BOUNDARY, FORM, Serving, at_once, form_of, serve
from train.predict.detector import Detector

WARM, PINK, COLD = (230, 120, 40), (220, 60, 160), (30, 90, 200)
TOKEN = "a-token-of-more-than-16-characters"


def encode(colour: tuple[int, int, int], kind: str = "JPEG", *, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).normal(colour, 25, (48, 64, 3)).clip(0, 255)
    return encode_picture(Image.fromarray(pixels.astype(np.uint8)), kind)


@pytest.fixture(scope="module")
def served(two_targets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serve(two_targets, tmp_path_factory.mktemp("served") / "log") as serving:
        yield serving


@pytest.fixture(scope="module")
def guarded(two_targets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("guarded") / "log"
    with serve(two_targets, log, "--host", "0.0.0.0") as serving:
        yield serving


# Answers


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize(("colour", "label"), [(WARM, "cat"), (PINK, "dog"), (COLD, "")])
def test_an_answer_has_the_label_and_the_documented_fields(
    served: Serving, colour: tuple[int, int, int], label: str, kind: str
) -> None:
    answer = served.ask(encode(colour, kind))
    assert answer.status == 200
    assert answer.json["label"] == label
    assert set(answer.json) == {
        "label", "probabilities", "thresholds", "prior", "one_in", "model",
    }  # fmt: skip
    assert set(answer.json["probabilities"]) == set(answer.json["thresholds"]) == {"cat", "dog"}
    assert re.fullmatch(r"run@[0-9a-f]{12}", answer.json["model"])


def test_the_nearest_training_pictures_are_told_if_asked_for(served: Serving) -> None:
    answer = served.ask(encode(WARM, "PNG"), query="?nearest=true")
    nearest = answer.json["nearest"]
    assert {each["label"] for each in nearest["positives"]} == {"cat"}
    assert "cat" not in {each["label"] for each in nearest["negatives"]}
    for each in (*nearest["positives"], *nearest["negatives"]):
        assert set(each) == {
            "label", "similarity", "key", "source", "license", "preview",
        }  # fmt: skip
        with Image.open(io.BytesIO(base64.b64decode(each["preview"]))) as preview:
            assert preview.format == "JPEG"
    similarities = [each["similarity"] for each in nearest["positives"]]
    assert similarities == sorted(similarities, reverse=True)


def test_answers_are_those_of_the_detector_also_for_pictures_that_are_turned(
    served: Serving, two_targets: Path
) -> None:
    images = [with_orientation(quadrants(4), orientation) for orientation in (1, 3, 6, 8)]
    animation = [Image.new("RGB", (64, 64), colour) for colour in (WARM, COLD)]
    for kind in ("GIF", "WEBP"):
        options = {"save_all": True, "append_images": animation[1:], "duration": 50}
        images.append(encode_picture(animation[0], kind, **options))
    detector = Detector.load(two_targets)
    for image, expected in zip(images, detector(images), strict=True):
        answer = served.ask(image).json
        assert answer["label"] == expected.label
        assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
        assert answer["thresholds"] == pytest.approx(expected.thresholds)
        assert (answer["prior"], answer["one_in"]) == (expected.prior, expected.one_in)


def test_64_clients_at_once_get_their_own_answers_in_batches(served: Serving) -> None:
    before = _metrics(served)
    colours = [WARM, PINK, COLD] * 22
    images = [encode(colour, seed=number) for number, colour in enumerate(colours[:64])]
    answers = at_once(served, images)
    assert {answer.status for answer in answers} == {200}
    labels = {WARM: "cat", PINK: "dog", COLD: ""}
    assert [a.json["label"] for a in answers] == [labels[colour] for colour in colours[:64]]
    after = _metrics(served)

    def gained(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert gained("infineg_serve_batch_size_sum") == 64
    assert gained("infineg_serve_batch_size_count") < 40, "they were looked at together"
    assert gained('infineg_serve_requests_total{path="/predict",status="200"}') == 64


def test_another_prior_gives_other_probabilities_and_the_same_label(
    two_targets: Path, tmp_path: Path
) -> None:
    with serve(two_targets, tmp_path / "log", "--prior", 0.001) as serving:
        answer = serving.ask(encode(WARM)).json
    assert (answer["label"], answer["prior"]) == ("cat", 0.001)
    assert answer["probabilities"]["cat"] >= answer["thresholds"]["cat"]


# What is no picture, or too much of one


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("cat.jpg", encode(WARM))
    return file.getvalue()


NO_PICTURES = {
    "empty": (b"", "empty"),
    "words": (b"words", "no picture that can be read; these can: JPEG, PNG, WEBP"),
    "svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "drawing (SVG)"),
    "zip": (_zip(), "no picture that can be read"),
    "pdf": (b"%PDF-1.7\n" + bytes(2000), "no picture that can be read"),
    "truncated jpeg": (encode(WARM)[:900], "part of the picture is missing"),
    "truncated png": (encode(WARM, "PNG")[:900], "part of the picture is missing"),
    "random": (np.random.default_rng(0).bytes(100_000), "no picture that can be read"),
    "jpeg in name only": (b"\xff\xd8\xff\xe0 and then words", "part of the picture is missing"),
    "float tiff": (encode_picture(Image.new("F", (9, 9)), "TIFF"), "colours are of a kind"),
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_no_picture_gets_415_and_the_reason(served: Serving, name: str) -> None:
    content, reason = NO_PICTURES[name]
    answer = served.ask(content)
    assert answer.status == 415
    assert reason in answer.json["detail"]


def test_a_heic_picture_is_read_or_named(served: Serving) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(3000)  # its first box alone
    answer = served.ask(heic)
    assert answer.status == 415
    assert "HEIC" in answer.json["detail"] or "no picture that can be read" in answer.json["detail"]


@pytest.mark.parametrize("size", [(508_768, 68), (7_100, 7_100), (30_000, 30_000), (65_501, 10)])
def test_a_picture_of_too_many_pixels_gets_413_by_its_header(
    served: Serving, size: tuple[int, int]
) -> None:
    answer = served.ask(png_header(*size))
    assert answer.status == 413
    assert "too large" in answer.json["detail"]


def test_a_real_picture_of_fifty_megapixels_is_looked_at(served: Serving) -> None:
    picture = Image.new("L", (7_070, 7_070), 128)
    assert served.ask(encode_picture(picture, "PNG")).status == 200


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_body_of_100_mb_gets_413_and_is_not_held(served: Serving, is_declared: bool) -> None:
    process = psutil.Process(served.process.pid)
    before, most = process.memory_info().rss, 0
    block = bytes(1_000_000)

    def body() -> Iterator[bytes]:
        nonlocal most
        yield form_of(b"")[: -len(BOUNDARY) - 8]
        for _ in range(100):
            most = max(most, process.memory_info().rss)
            yield block

    size = {"Content-Length": str(len(form_of(b"")[: -len(BOUNDARY) - 8]) + 100_000_000)}
    answer = served.request("/predict", body(), headers=FORM | (size if is_declared else {}))
    assert answer.status == 413
    assert answer.json["detail"] == "the picture is larger than 20 MB: send a smaller one"
    assert most - before < 60_000_000
    assert served.ask(encode(WARM)).status == 200


def test_20_mb_are_the_limit(served: Serving) -> None:
    jpeg = encode(WARM)
    assert served.ask(jpeg + bytes(20_000_000 - len(jpeg))).status == 200
    assert served.ask(jpeg + bytes(20_000_001 - len(jpeg))).status == 413


def test_a_request_that_is_no_form_of_one_picture_is_told_what_to_send(served: Serving) -> None:
    jpeg = encode(WARM)
    wanted = "send multipart/form-data with one picture in the field `image`"
    cases = [
        (jpeg, {"Content-Type": "image/jpeg"}, 415, wanted),
        (jpeg, {}, 415, wanted),
        (b"{}", {"Content-Type": "application/json"}, 415, wanted),
        (form_of(jpeg, field="picture"), FORM, 415, "its fields: picture"),
        (form_of(b"jpeg", filename=None), FORM, 415, "no complete picture"),
        (form_of(), FORM, 415, "its fields: none"),
        (form_of(jpeg, jpeg), FORM, 400, "several pictures"),
        (form_of(*[jpeg] * 9), FORM, 400, wanted),
        (form_of(jpeg)[:-60], FORM, 415, "no complete picture"),
        (jpeg, {"Content-Type": "multipart/form-data"}, 400, wanted),
        (b"", FORM, 415, "no complete picture"),
    ]
    for body, headers, status, reason in cases:
        answer = served.request("/predict", body, method="POST", headers=headers)
        assert (answer.status, reason in answer.json["detail"]) == (status, True), answer.content


def test_the_type_that_a_client_states_and_the_name_of_a_file_do_not_matter(
    served: Serving,
) -> None:
    for name in ("a.exe", "..\\..\\etc\\passwd", "<img src=x onerror=alert(1)>.jpg", ""):
        body = form_of(encode(WARM, "PNG"), filename=name)
        answer = served.request("/predict", body, headers=FORM)
        assert (answer.status, answer.json["label"]) == (200, "cat")


# Overload


def test_pictures_beyond_the_bound_get_503_and_the_server_lives(
    two_targets: Path, tmp_path: Path
) -> None:
    body = form_of(encode(WARM))
    head = (
        f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: {FORM['Content-Type']}\r\n\r\n"
    ).encode()
    with serve(two_targets, tmp_path / "log", "--max-pictures", 3) as serving:
        slow = [socket.create_connection(("127.0.0.1", serving.port)) for _ in range(3)]
        for each in slow:
            each.sendall(head + body[:-100])
        name = "infineg_serve_pictures_held"
        while _metrics(serving)[name] < 3:
            time.sleep(0.01)
        for image in (encode(WARM), bytes(30_000_000)):
            answer = serving.ask(image)
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert answer.json["detail"] == "too many pictures at once: try again in a moment"
        assert serving.request("/healthz").status == 200
        slow.pop().close()
        for each in slow:
            each.sendall(body[-100:])
            with each:
                assert each.recv(100).startswith(b"HTTP/1.1 200")
        while _metrics(serving)[name]:
            time.sleep(0.01)
        statuses = {answer.status for answer in at_once(serving, [encode(WARM)] * 40)}
        assert 200 in statuses
        assert statuses <= {200, 503}
        assert serving.ask(encode(WARM)).json["label"] == "cat"
        assert _metrics(serving)[name] == 0, "every place is given back"
        assert "Traceback" not in serving.log.read_text()


def test_sigterm_ends_it_at_once_whatever_clients_do(two_targets: Path, tmp_path: Path) -> None:
    with serve(two_targets, tmp_path / "log") as serving:
        idle, half = (socket.create_connection(("127.0.0.1", serving.port)) for _ in range(2))
        with idle, half, contextlib.ExitStack() as clients:
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert idle.recv(100).startswith(b"HTTP/1.1 200")
            half.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n")
            large = form_of(encode_picture(Image.new("L", (7_000, 7_000), 128), "PNG"))
            busy = [serving.connect() for _ in range(8)]  # seconds of work
            for each in busy:
                clients.enter_context(contextlib.closing(each))
                each.request("POST", "/predict", large, FORM)
            while _metrics(serving)["infineg_serve_pictures_held"] < 8:
                time.sleep(0.01)
            begun = time.monotonic()
            os.kill(serving.process.pid, signal.SIGTERM)
            code = serving.process.wait(timeout=10)
        assert time.monotonic() - begun < 3
        assert code in (-signal.SIGTERM, 128 + signal.SIGTERM)


# Who may use it


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8000", ""])
def test_other_names_of_this_machine_are_refused(served: Serving, host: str) -> None:
    for path in ("/", "/metrics", "/static/page.js"):
        assert served.request(path, headers={"Host": host}).status == 400
    assert served.ask(encode(WARM), Host=host).status == 400
    for name in ("localhost:9000", "[::1]:8000", "127.0.0.1"):
        assert served.request("/", headers={"Host": name}).status == 200, "as with ssh -L"


def test_requests_of_other_sites_are_refused(served: Serving) -> None:
    own = f"http://127.0.0.1:{served.port}"
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": own.replace("127.0.0.1", "localhost")},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ):
        answer = served.ask(encode(WARM), **headers)
        assert answer.status == 403, headers
        assert "access-control-allow-origin" not in answer.headers
    assert served.ask(encode(WARM), Origin=own, Sec_Fetch_Site="same-origin").status == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert served.request("/", headers=link).status == 200, "a link may lead to the page"
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert served.request("/predict", method="OPTIONS", headers=preflight).status == 403


def test_beyond_loopback_every_request_needs_the_token(guarded: Serving) -> None:
    token = guarded.base.strip("/")
    assert len(token) > 40
    jpeg, bearer = encode(WARM), {"Authorization": f"Bearer {token}"}
    for path in ("/", "/metrics", "/openapi.json", "/static/page.js", "/x/", f"/{token}"):
        answer = guarded.request(path)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer"), path
        assert token not in str(answer.headers) + answer.content.decode()
    for wrong in (token[:-1], token.swapcase(), "", "\xe9", f"{token}x"):
        headers = {"Authorization": f"Bearer {wrong}"}
        assert guarded.request("/", headers=headers).status == 401
    assert guarded.request("/predict", form_of(jpeg), headers=FORM).status == 401
    assert guarded.request("/predict", form_of(jpeg), headers=FORM | bearer).status == 200
    assert guarded.ask(jpeg).status == 200, "the path has it"
    assert guarded.request(f"/{token}/metrics").status == 200
    assert guarded.request("/healthz").status == 200
    named = {"Host": "cats.example", "Origin": "https://cats.example"}  # behind a proxy with TLS
    assert guarded.request("/predict", form_of(jpeg), headers=FORM | bearer | named).status == 200
    assert guarded.log.read_text().count(token) == 1, "printed once, and in no log"
    metrics = guarded.request("/metrics", headers=bearer).content.decode()
    assert token not in metrics


def test_a_token_may_come_from_a_file_or_the_environment(two_targets: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    options = ("--token-file", tmp_path / "token")
    with serve(two_targets, tmp_path / "log", *options) as serving:
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert serving.request("/").status == 401, "on loopback, too"
        assert serving.request("/", headers=bearer).status == 200
        assert TOKEN not in serving.log.read_text()
    with serve(two_targets, tmp_path / "log", INFINEG_SERVE_TOKEN=TOKEN) as serving:
        assert serving.request("/").status == 401
        assert serving.request(f"/{TOKEN}/").status == 200


def test_what_cannot_be_served_is_refused_with_the_remedy(
    two_targets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("short")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, reason in (
            ((two_targets, "--port", port), "or 0 for any free one"),
            ((two_targets, "--host", "192.0.2.1"), "Use an address of this machine"),
            ((two_targets, "--token-file", tmp_path / "token"), "16 to 256 characters"),
            ((tmp_path / "nothing", "--port", free_port()), "infineg train"),
            ((two_targets, "--prior", 2, "--port", free_port()), "between 0 and 1"),
        ):
            code, _, err = call_infineg(capsys, "serve", *arguments)
            assert (code, reason in err) == (2, True), err


# What else is there


def test_no_answer_may_be_framed_sniffed_or_run_a_foreign_script(served: Serving) -> None:
    for path in ("/", "/static/page.js", "/nothing", "/predict", "/metrics"):
        headers = served.request(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers
    for path in ("/docs", "/redoc", "/static/..%2fapp.py", "/static/app.py", "/static/"):
        assert served.request(path).status == 404, path
    page = served.request("/").content.decode()
    assert not re.search(r"https?://|\son\w+=|<style|style=|<script>", page)


def test_openapi_describes_the_form_and_every_fault(served: Serving) -> None:
    api = served.request("/openapi.json").json
    operation = api["paths"]["/predict"]["post"]
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"] == {"image": {"type": "string", "format": "binary"}}
    assert set(operation["responses"]) == {
        "200", "400", "401", "403", "408", "413", "415", "503",
    }  # fmt: skip
    answer = api["components"]["schemas"]["Answer"]["properties"]
    assert list(answer) == list(served.ask(encode(WARM), query="?nearest=true").json)


def test_metrics_compare_the_logits_given_with_those_of_val(
    two_targets: Path, tmp_path: Path
) -> None:
    with serve(two_targets, tmp_path / "log") as serving:
        for seed in range(5):
            serving.ask(encode(WARM, seed=seed))
        serving.ask(encode(COLD))
        serving.ask(b"words")
        serving.request("/some/where")
        metrics = _metrics(serving)
    assert metrics['infineg_serve_predictions_total{label="cat"}'] == 5
    assert metrics['infineg_serve_predictions_total{label=""}'] == 1
    assert metrics['infineg_serve_requests_total{path="/predict",status="415"}'] == 1
    assert metrics['infineg_serve_requests_total{path="other",status="404"}'] == 1
    assert metrics["infineg_serve_latency_seconds_count"] == 7
    logits = {
        name: value for name, value in metrics.items() if name.startswith("infineg_serve_logit_b")
    }
    assert metrics['infineg_serve_logit_count{target="cat"}'] == 6
    edges = [re.search(r'le="([^"]+)"', name)[1] for name in logits if '"cat"' in name]
    for shows, total in (("yes", 20), ("no", 95)):
        label = f'shows="{shows}",target="cat"'
        counts = [
            metrics[f'infineg_serve_val_logit_bucket{{le="{edge}",{label}}}'] for edge in edges
        ]
        assert counts == sorted(counts)
        assert counts[-1] == total
    low = f'infineg_serve_val_logit_bucket{{le="{edges[10]}",'
    assert metrics[f'{low}shows="no",target="cat"}}'] > metrics[f'{low}shows="yes",target="cat"}}']


def _metrics(serving: Serving) -> dict[str, float]:
    """By name and labels, the latter sorted."""
    text = serving.request(f"{serving.base}metrics").content.decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found
