"""Decoding in threads and processes: equal pixels, turns of requests, and what is slow, given up or short of memory."""

import asyncio
import base64
import errno
import io
import json
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from archives import photo, unpacked_archive
from commands import warm
from PIL import Image

from bincounter.data.photo_bounds import PhotoError
from bincounter.data.preprocessing import decode
from bincounter.serving.application import decode_pool
from bincounter.serving.application.answers import Problem
from bincounter.serving.application.decode_pool import DecodePool
from bincounter.serving.application.served_model import ServedModel
from bincounter.serving.application.service import Reply, Service
from bincounter.serving.entrypoints import pytorch_image
from bincounter.serving.local.explain import Explainer
from bincounter.serving.packing.parity import archive_answers

SIZE = 32


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Every process of a pool ends with it."""
    yield
    assert not psutil.wait_procs(decoding(), timeout=10)[1]


def decoding() -> list[psutil.Process]:
    return [
        child for child in psutil.Process().children() if "bincounter.data.photo_decoder" in " ".join(child.cmdline())
    ]


def pooled(scenario: Callable[[DecodePool], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        pool = DecodePool(SIZE)
        try:
            return await scenario(pool)
        finally:
            pool.close()

    return asyncio.run(run())


def many_scans(side: int = 9000, scans: int = 90) -> bytes:
    """A progressive JPEG that takes seconds."""
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last, before = data.rindex(b"\xff\xda"), data.count(b"\xff\xda")
    return data[:-2] + data[last:-2] * (scans - before) + b"\xff\xd9"


def large() -> bytes:
    """A PNG of 4 MP."""
    file = io.BytesIO()
    Image.new("RGB", (2000, 2000), "red").save(file, "PNG")
    return file.getvalue()


def answers(archive: Path, *bodies: bytes, while_asked: Callable[[], Awaitable[None]] | None = None) -> list[Reply]:
    """Ask a service of an archive one body after the other."""

    async def run() -> list[Reply]:
        service = Service(ServedModel.load(archive))
        await service.start()
        replies = []
        for body in bodies:
            asked = asyncio.create_task(service.handle(body, None, None))
            if while_asked:
                await while_asked()
            replies.append(await asked)
        await service.close()
        return replies

    return asyncio.run(run())


def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all photos decoded in processes."""
    monkeypatch.setattr(decode_pool, "_QUICK", 0)


def test_large_photos_have_the_pixels_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [photo(3), photo(2, "PNG", side=1500), photo(1, "WEBP")]

    async def scenario(pool: DecodePool) -> None:
        for number, data in enumerate(photos):
            assert torch.equal(await pool.decode(partial(bytes, data), number), decode(data, SIZE))
        for broken in (photo()[:2000], b"notes"):
            with pytest.raises(PhotoError) as here:
                decode(broken, SIZE)
            with pytest.raises(PhotoError) as there:
                await pool.decode(partial(bytes, broken), None)
            assert str(there.value) == str(here.value)
        [process] = decoding()
        assert process.nice() >= psutil.Process().nice()
        assert process.memory_info().rss < 100_000_000, "it imports no torch, and large photos leave nothing"

    apart(monkeypatch)
    pooled(scenario)


def test_a_photo_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch, unpacked: Path) -> None:
    monkeypatch.setattr(decode_pool, "SECONDS", 0.5)
    slow, good = answers(unpacked, many_scans(), large())
    assert slow.status == 422
    assert "takes more than 0.5 s to decode" in json.loads(slow.body)["error"]
    assert good.status == 200


def test_a_request_that_is_given_up_ends_its_process(tmp_path: Path) -> None:
    folder = unpacked_archive(tmp_path / "archive", timeout_s=3.0)
    late, good = answers(folder, many_scans(), large())
    assert (late.status, good.status) == (504, 200)
    assert not decoding()


def test_requests_take_turns() -> None:
    async def scenario(pool: DecodePool) -> list[str]:
        turns, order, held = decode_pool._Turns(1), list[str](), asyncio.Event()

        async def photo_of(request: str) -> None:
            async with turns.turn(request):
                order.append(request)
                await held.wait()

        tasks = [asyncio.create_task(photo_of(request)) for request in "aaaabbc"]
        await asyncio.sleep(0)
        tasks[1].cancel()  # one that waits
        tasks[0].cancel()  # and the one that is served
        held.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with turns.turn("d"):  # no place was lost
            order.append("d")
        return order

    assert "".join(pooled(scenario)) == "abcabad"


@pytest.mark.parametrize(("bound", "most", "taken"), [("_MOST_WAITING", 2, 2), ("_MOST_BYTES", 10, 1)])
def test_more_large_photos_than_can_wait_are_refused_but_never_the_first(
    monkeypatch: pytest.MonkeyPatch, bound: str, most: int, taken: int
) -> None:
    monkeypatch.setattr(decode_pool, bound, most)
    apart(monkeypatch)

    async def scenario(pool: DecodePool) -> None:
        results = await asyncio.gather(*(pool.decode(photo, each) for each in range(3)), return_exceptions=True)
        refused, *others = (each for each in results if isinstance(each, BaseException))
        assert len(others) == 3 - taken - 1
        assert isinstance(refused, Problem)
        assert (refused.status, refused.headers) == (503, {"Retry-After": "1"})

    pooled(scenario)


def test_a_request_of_many_large_photos_leaves_places_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool, "_MOST_WAITING", 6)
    apart(monkeypatch)

    async def scenario(pool: DecodePool) -> None:
        many = [pool.decode(photo, "many") for _ in range(12)]
        pixels = await asyncio.gather(*many, pool.decode(photo, "one"))
        assert all(torch.equal(each, decode(photo(), SIZE)) for each in pixels)
        assert not pool._admissions

    pooled(scenario)


def test_a_process_that_died_while_it_waited_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    apart(monkeypatch)

    async def scenario(pool: DecodePool) -> None:
        await pool.decode(photo, 0)
        [process] = decoding()
        process.kill()
        psutil.wait_procs([process], timeout=10)
        assert torch.equal(await pool.decode(photo, 1), decode(photo(), SIZE))

    pooled(scenario)


@pytest.mark.parametrize(("size", "is_apart"), [((65_500, 447), True), ((4000, 3000), False)], ids=["thin", "usual"])
def test_a_jpeg_that_is_unpacked_whole_is_not_quick(size: tuple[int, int], is_apart: bool) -> None:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "JPEG")

    async def scenario(_: DecodePool) -> None:
        pool = DecodePool(224)
        await pool.decode(file.getvalue, 0)
        assert bool(decoding()) is is_apart
        pool.close()

    pooled(scenario)


@pytest.mark.parametrize(
    "failure", [MemoryError(), OSError(errno.EMFILE, "Too many open files"), RuntimeError("can't allocate memory")]
)
@pytest.mark.parametrize("step", ["read_header", "decode_square", "subprocess.Popen"])
def test_a_shortage_is_no_fault_of_the_photo(
    monkeypatch: pytest.MonkeyPatch, unpacked: Path, step: str, failure: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    if step == "subprocess.Popen":
        apart(monkeypatch)
    monkeypatch.setattr(f"bincounter.serving.application.decode_pool.{step}", fail)
    [reply] = answers(unpacked, photo())
    assert (reply.status, reply.headers) == (503, {"Retry-After": "1"})
    assert "short of memory or open files" in json.loads(reply.body)["error"]


@pytest.mark.parametrize(
    ("step", "failure"),
    [
        ("report.report_photos.grad_cam", MemoryError()),
        ("report.report_photos.grad_cam", RuntimeError("DefaultCPUAllocator: can't allocate memory")),
        ("serving.application.served_model.ServedModel.network", MemoryError()),
        ("serving.local.explain.cam_layer", ImportError("libgomp.so: Too many open files")),
        ("serving.application.decode_pool.decode_square", OSError(errno.EMFILE, "Too many open files")),
    ],
)
def test_a_shortage_while_a_photo_is_explained_is_no_fault_of_the_photo(
    monkeypatch: pytest.MonkeyPatch, unpacked: Path, step: str, failure: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    async def explain() -> tuple[Reply, Reply]:
        model = ServedModel.load(unpacked)
        service = Service(model)
        explainer = Explainer(model, service)
        with monkeypatch.context() as failing:
            failing.setattr(f"bincounter.{step}", fail)
            short = await explainer.handle(photo(), "image/jpeg", None)
        later = await explainer.handle(photo(), "image/jpeg", None)
        explainer.close()
        await service.close()
        return short, later

    short, later = asyncio.run(explain())
    assert (short.status, short.headers) == (503, {"Retry-After": "1"})
    assert "short of memory or open files" in json.loads(short.body)["error"]
    assert later.status == 200


def test_a_process_that_is_killed_for_memory_is_no_fault_of_the_photo(unpacked: Path) -> None:
    async def kill() -> None:
        while not decoding():
            await asyncio.sleep(0.01)
        decoding()[0].send_signal(signal.SIGKILL)

    [reply] = answers(unpacked, many_scans(), while_asked=kill)
    assert reply.status == 503


def test_an_archive_decodes_large_photos_by_its_own_code(tmp_path: Path) -> None:
    folder = unpacked_archive(tmp_path / "archive")
    answered, _ = archive_answers(folder, {"large": large()}, python=warm().executable)
    assert answered["large"].status == 200
    own = folder / "code/bincounter/data/photo_decoder.py"
    own.write_text(own.read_text().replace("    os.nice(10)\n", "    os.abort()\n"))
    answered, _ = archive_answers(folder, {"large": large(), "small": photo()}, python=warm().executable)
    assert (answered["large"].status, answered["small"].status) == (503, 200)


def test_the_older_image_answers_a_shortage_likewise(monkeypatch: pytest.MonkeyPatch, unpacked: Path) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    model = pytorch_image.model_fn(str(unpacked))
    monkeypatch.setattr(decode_pool, "decode_square", fail)
    problem = pytorch_image.predict_fn(pytorch_image.input_fn(photo(), None), model)
    assert isinstance(problem, Problem)
    assert problem.status == 503


def test_the_older_image_gives_up_a_photo_that_takes_too_long(monkeypatch: pytest.MonkeyPatch, unpacked: Path) -> None:
    monkeypatch.setattr(decode_pool, "SECONDS", 0.5)
    model = pytorch_image.model_fn(str(unpacked))
    problem = pytorch_image.predict_fn(pytorch_image.input_fn(many_scans(), None), model)
    assert isinstance(problem, Problem)
    assert problem.status == 422


def test_the_older_image_gives_up_a_request_that_takes_too_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = list[bool]()

    def slow(*_: object) -> bytes:
        time.sleep(0.15)
        taken.append(True)
        return bytes(3 * SIZE**2)

    model = pytorch_image.model_fn(str(unpacked_archive(tmp_path / "archive", timeout_s=0.2)))
    monkeypatch.setattr(decode_pool, "decode_square", slow)
    photos = json.dumps({"instances": [{"image": base64.b64encode(photo()).decode()}] * 8}).encode()
    problem = pytorch_image.predict_fn(pytorch_image.input_fn(photos, "application/json"), model)
    assert isinstance(problem, Problem)
    assert problem.status == 504
    assert "within 0.2 s" in problem.sentence
    assert len(taken) < 8
