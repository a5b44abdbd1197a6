"""Parsing of requests: accepted formats, and the status and message for all others."""

import base64
import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from archives import COUNTS, Running, photo
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from bincounter.serving.application.answers import Limits
from bincounter.serving.application.photo_requests import parse_request
from bincounter.serving.application.service import Reply

JSON, FORM = "application/json", "multipart/form-data; boundary=x"
EXPECTED = {200, 400, 413, 415, 422}


@pytest.fixture(scope="module")
def service(unpacked: Path) -> Iterator[Running]:
    running = Running(unpacked)
    yield running
    running.close()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


def sentence(reply: Reply, status: int) -> str:
    assert reply.status == status, reply.body
    assert reply.content_type == JSON
    [(key, value)] = json.loads(reply.body).items()
    assert key == "error"
    assert value.endswith((".", "?"))
    return value


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (photo(1), "image/jpeg"),
        (photo(1), "IMAGE/JPEG; quality=high"),
        (photo(1), "image/png"),  # a name that is wrong harms nobody
        (photo(1), "application/x-image"),
        (photo(1), "application/octet-stream"),
        (photo(1), None),
        (photo(1), ""),
        (as_json({"image": encoded(photo(1))}), JSON),
        (as_json({"image": encoded(photo(1))}), "Application/JSON; charset=utf-8"),
        (b"\n " + as_json({"image": encoded(photo(1))}), "application/octet-stream"),
        (as_json({"b64": encoded(photo(1))}), None),
        (as_json({"image": "data:image/jpeg;base64," + encoded(photo(1))}), JSON),
        (as_json({"image": base64.encodebytes(photo(1)).decode()}), JSON),
        (json.dumps({"image": encoded(photo(1))}).encode("utf-16"), JSON),
    ],
)
def test_one_photo_has_one_answer_in_whatever_form_it_comes(
    service: Running, body: bytes, content_type: str | None
) -> None:
    reply = service.ask(body, content_type)
    assert (reply.status, reply.content_type) == (200, JSON)
    assert reply.body == service.ask(photo(1), "image/jpeg").body


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_formats(service: Running, format_: str) -> None:
    assert service.ask(photo(2, format_), f"image/{format_.lower()}").status == 200


def test_instances_are_answered_in_order(service: Running) -> None:
    photos = [photo(seed) for seed in range(5)]
    instances = [{"image": encoded(photos[0])}, *({"b64": encoded(data)} for data in photos[1:])]
    predictions = json.loads(service.ask(as_json({"instances": instances}), JSON).body)["predictions"]
    alone = [json.loads(service.ask(data, "image/jpeg").body) for data in photos]
    for together, one in zip(predictions, alone, strict=True):
        assert together["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)
    [only] = json.loads(service.ask(as_json({"instances": instances[:1]}), JSON).body)["predictions"]
    assert only == alone[0]


def test_csv_has_a_line_per_photo(service: Running) -> None:
    instances = as_json({"instances": [{"image": encoded(photo(seed))} for seed in range(3)]})
    reply = service.ask(instances, JSON, "text/csv; header=present")
    names, *lines = (line.split(",") for line in reply.body.decode().splitlines())
    assert names == ["count", "expected_count", *(f"p_{count}" for count in COUNTS), "model"]
    predictions = json.loads(service.ask(instances, JSON).body)["predictions"]
    for line, prediction in zip(lines, predictions, strict=True):
        assert int(line[0]) == prediction["count"]
        assert [float(cell) for cell in line[2:-1]] == pytest.approx(
            list(prediction["probabilities"].values()), abs=1e-5
        )
        assert line[-1] == prediction["model"]
    assert len(service.ask(photo(), "image/jpeg", "text/csv").body.splitlines()) == 1


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON),
        ("text/csv;q=0.5, application/json;q=0.4", "text/csv; charset=utf-8"),
        ("TEXT/CSV", "text/csv; charset=utf-8"),
        ("application/json, text/csv", JSON),
    ],
)
def test_accept_decides_the_form(service: Running, accept: str | None, content_type: str) -> None:
    assert service.ask(photo(), "image/jpeg", accept).content_type == content_type


@pytest.mark.parametrize("accept", ["text/html", "image/jpeg", "application/json;q=0", "text/csv;q=lots", "\ud800"])
def test_other_forms_cannot_be_asked_for(service: Running, accept: str) -> None:
    assert "Accept" in sentence(service.ask(photo(), "image/jpeg", accept), 415)


@pytest.mark.parametrize("content_type", ["text/plain", "image/tiff", "multipart/mixed; boundary=x", "?", "\ud800"])
def test_other_content_types_are_refused(service: Running, content_type: str) -> None:
    assert "image/jpeg" in sentence(service.ask(photo(), content_type), 415)


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress, partial(zlib.compress, level=1)])
@pytest.mark.parametrize("content_type", ["image/jpeg", JSON, None])
def test_a_compressed_body_without_its_header_is_named(
    service: Running, content_type: str | None, compress: Callable[[bytes], bytes]
) -> None:  # AWS's adapter drops Content-Encoding
    body = photo(1) if content_type == "image/jpeg" else as_json({"image": encoded(photo(1))})
    assert "compressed" in sentence(service.ask(compress(body), content_type), 415)


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"{", 400, "not JSON"),
        (b"[]", 400, "not an object"),
        (b"NaN", 400, "not an object"),
        (b"{}", 400, "none of"),
        (b'{"image": NaN}', 400, "must be a string"),
        (b'{"image": null}', 400, "null"),
        (b'{"image": ""}', 400, "empty"),
        (b'{"image": "-"}', 400, "not base64"),
        (b'{"image": "\\ud800"}', 400, "not base64"),
        (b'{"\\ud800": ""}', 400, "not a known key"),
        (b'{"image": "QUJD", "image": "QUJD"}', 400, "twice"),
        (b'{"image": "QUJD", "url": "https://example.org"}', 400, "more than one"),
        (b'{"imgae": "QUJD"}', 400, 'did you mean "image"?'),
        (b'{"image": "QUJD"}', 422, "not a JPEG, PNG or WebP"),
        (b'{"url": "https://example.org/1.jpg"}', 400, "not fetched by URL here"),
        (b'{"instances": {}}', 400, "not a list"),
        (b'{"instances": []}', 400, "not a list"),
        (b'{"instances": [{"url": 3}]}', 400, "instances[0]"),
        (b'{"instances": ["QUJD"]}', 400, "instances[0]"),
        (b'{"instances": [{"image": "QUJD"}], "parameters": 1}', 400, '"parameters"'),
        (b'\xff{"image": ""}', 400, "UTF-8"),
        (b"1" * 5000, 400, "not JSON"),
        (b"[" * 100_000, 400, "lists"),
        (b'{"image":' * 140, 400, "not JSON"),
        (b'{"a":' * 100_000, 413, "more parts"),
        (b'{"instances": [' + b'{"b64": ""},' * 100 + b"]}", 413, "more parts"),
        (as_json({"instances": [{"image": "QUJD"}] * 9}), 413, "at most 8"),
    ],
)
def test_json_that_is_wrong(service: Running, content: bytes, status: int, words: str) -> None:
    assert words in sentence(service.ask(content, JSON), status)


def form(*files: bytes, name: str = 'name="photo"; filename="a.jpg"', more: str = "") -> bytes:
    """A form, part by part, as RFC 7578 has it."""
    head = f"--x\r\nContent-Disposition: form-data; {name}\r\n{more}\r\n".encode()
    return b"".join(head + file + b"\r\n" for file in files) + b"--x--\r\n"


@pytest.mark.parametrize("files", [1, 3, 8])
def test_files_of_a_form_are_photos_in_their_order(service: Running, files: int) -> None:
    photos = [photo(seed) for seed in range(files)]
    alone = [json.loads(service.ask(each).body)["expected_count"] for each in photos]
    answered = json.loads(service.ask(form(*photos), FORM).body)["predictions"]
    assert [one["expected_count"] for one in answered] == pytest.approx(alone)
    rows = service.ask(form(*photos), FORM, "text/csv").body.splitlines()
    assert [float(row.split(b",")[1]) for row in rows] == pytest.approx(alone)


def test_a_photo_that_looks_like_a_form_is_kept_whole(service: Running) -> None:
    content = photo(1, "PNG") + b"\r\n--\r\n--y\r\n\r\n--" * 1000
    request = parse_request(form(content), FORM, Limits())
    assert (request.photos, request.several) == ([content], True)
    assert service.ask(form(content), FORM).status == service.ask(content).status


@pytest.mark.parametrize(
    ("content", "content_type", "status", "words"),
    [
        (form(), FORM, 400, "cannot be read"),
        (form(photo(1)), "multipart/form-data", 400, "cannot be read"),
        (form(photo(1)), "multipart/form-data; boundary=other", 400, "cannot be read"),
        (form(photo(1)), f"multipart/form-data; boundary={'a' * 4000}", 400, "cannot be read"),
        (form(photo(1)), "multipart/form-data; boundary=\ud800", 400, "cannot be read"),
        (form(photo(1))[:-10], FORM, 400, "cannot be read"),
        (b"--x\r\n" + b"name: text\r\n" * 100_000, FORM, 400, "cannot be read"),
        (b"--x\r\nname: " + b"a" * 1_000_000, FORM, 400, "cannot be read"),
        (form(b"a", name='name="photo"'), FORM, 400, "is not a file"),
        (form(b"a", name=""), FORM, 400, "is not a file"),
        (form(b"YQ==", more="Content-Transfer-Encoding: base64\r\n"), FORM, 415, "transfer encoding"),
        (form(*[b"a"] * (9)), FORM, 413, "more than 8 parts"),
        (form(photo(1), b""), FORM, 400, "files[1]: the photo is empty"),
        (form(photo(1), b"no photo"), FORM, 422, "files[1]: the photo cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)
def test_form_that_is_wrong(service: Running, content: bytes, content_type: str, status: int, words: str) -> None:
    assert words in sentence(service.ask(content, content_type), status)


def test_the_photo_that_is_wrong_is_named(service: Running) -> None:
    instances = [{"image": encoded(photo())}, {"image": encoded(photo()[:500])}]
    assert sentence(service.ask(as_json({"instances": instances}), JSON), 422).startswith("instances[1]: the photo")


def png(chunks: list[tuple[bytes, bytes]], width: int = 8, height: int = 8) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    written = b"\x89PNG\r\n\x1a\n"
    for kind, data in [(b"IHDR", head), *chunks, (b"IEND", b"")]:
        written += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return written


@cache
def bomb() -> bytes:
    """200 MB of zeros, packed to a thousandth."""
    packer = zlib.compressobj(1)
    return b"".join([*(packer.compress(bytes(1_000_000)) for _ in range(200)), packer.flush()])


def in_format(format_: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, format_)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (photo()[:-1000], 422, "truncated"),
        (b"\xff\xd8\xff" + bytes(100), 422, "damaged"),
        (in_format("GIF"), 422, "JPEG, PNG or WebP"),
        (in_format("TIFF"), 422, "JPEG, PNG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "JPEG, PNG or WebP"),
        (b"\0\0\0\x18ftypheic" + bytes(100), 422, "JPEG, PNG or WebP"),
        (png([(b"IDAT", zlib.compress(b""))], 60_000, 60_000), 413, "megapixels"),
        (png([(b"IDAT", zlib.compress(b"\0" * 1_000_000))], 9_000, 9_000), 422, "truncated"),
        (bytes(2_000_001), 413, "more than 2 MB"),
    ],
    ids=["cut", "nothing in it", "gif", "tiff", "svg", "heic", "60000 x 60000", "too few pixels", "long body"],
)
def test_bytes_that_are_no_photo(service: Running, data: bytes, status: int, words: str) -> None:
    assert words in sentence(service.ask(data, "application/octet-stream"), status)


@pytest.mark.parametrize("kind", [b"IDAT", b"iCCP", b"zTXt"])
def test_a_photo_cannot_unpack_to_more_than_its_size(service: Running, kind: bytes) -> None:
    named = bomb() if kind == b"IDAT" else b"name\0\0" + bomb()
    chunks = [(kind, named)] if kind == b"IDAT" else [(kind, named), (b"IDAT", zlib.compress(bytes(8 * 25)))]
    assert service.ask(png(chunks), "image/png").status in EXPECTED


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([encoded(photo())[:400]]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["image", "url", "b64", "instances", "Image"]) | st.text(), inner, max_size=3)
    ),
    max_leaves=12,
)
HEADERS = (
    st.none() | st.sampled_from(["", "image/jpeg", JSON, FORM, "text/csv", "application/octet-stream"]) | st.text()
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A photo or a request of which a part is changed or missing."""
    whole = draw(st.sampled_from([photo(1), photo(2, "PNG"), photo(3, "WEBP"), as_json({"image": encoded(photo())})]))
    start, length = draw(st.integers(0, len(whole))), draw(st.integers(0, 64))
    return whole[:start] + draw(st.binary(max_size=64)) + whole[start + length :]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary() | damaged() | JSON_VALUES.map(as_json), HEADERS, HEADERS)
@example(b'{"instances": [{}]}', JSON, None)
def test_anything_is_answered(service: Running, body: bytes, content_type: str | None, accept: str | None) -> None:
    reply = service.ask(body, content_type, accept)
    assert reply.status in EXPECTED
    if reply.status != 200:
        sentence(reply, reply.status)
    elif reply.content_type == JSON:
        answer = json.loads(reply.body)
        for one in answer.get("predictions", [answer]):
            assert one["count"] in COUNTS
            assert sum(one["probabilities"].values()) == pytest.approx(1)


LONG = "a" * 4000


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "status"),
    [
        (as_json({LONG: 1}), JSON, None, 400),
        (as_json({"instances": [{"image": ""}], LONG: 1}), JSON, None, 400),
        (f'{{"{LONG}": 1, "{LONG}": 2}}'.encode(), JSON, None, 400),
        (LONG.encode(), JSON, None, 400),
        (as_json({"url": f"https://{LONG}/1.jpg"}), JSON, None, 400),
        (photo(1), LONG, None, 415),
        (photo(1), None, LONG, 415),
    ],
    ids=["key", "key beside", "key twice", "no JSON", "host", "content type", "accept"],
)
def test_long_text_is_shortened_in_the_answer(
    service: Running, body: bytes, content_type: str | None, accept: str | None, status: int
) -> None:
    assert len(sentence(service.ask(body, content_type, accept), status)) < 300
