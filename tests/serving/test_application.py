"""Model and service of an archive: exact answers, batches, overload and failures."""

import asyncio
import base64
import json
import shutil
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import COUNTS, MODEL, OBJECTIVE, photo
from torch import Tensor, nn

from bincounter.data.preprocessing import Normalize, decode
from bincounter.model.build import build_counter
from bincounter.serving.application.answers import AnswerFormatter, Limits, Problem, parse_accept
from bincounter.serving.application.batcher import Batcher
from bincounter.serving.application.served_model import ArchiveError, ServedModel, instantiate
from bincounter.serving.application.service import Reply, Service
from bincounter.serving.application.url_fetcher import Fetcher


def described(folder: Path, **changes: Any) -> Path:
    """Change what an archive says of itself."""
    path = folder / "model.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")
    return folder


class Spatial(nn.Module):
    """A head that reads maps."""

    def __init__(self, in_features: int, counts: int) -> None:
        super().__init__()
        self.outputs = nn.Conv2d(in_features, counts, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.outputs(maps).mean((2, 3))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("head", [{}, {"layers": 1, "width": 16, "dropout": 0.5}])
@pytest.mark.parametrize("objective", ["Classification", "Corn", "NeighbourSoftened"])
def test_probabilities_are_training_s_bit_for_bit(
    tmp_path: Path, unpacked: Path, objective: str, head: dict[str, Any], channels_last: bool
) -> None:
    node = {**MODEL, "head": head, "channels_last": channels_last}
    objective_node = {"_target_": f"bincounter.model.objectives.{objective}"}
    torch.manual_seed(1)
    counter = build_counter(node, objective_node, COUNTS).eval()
    parts = ("backbone.", "head.", "objective.")
    torch.save({k: v for k, v in counter.state_dict().items() if k.startswith(parts)}, tmp_path / "weights.pt")
    shutil.copy(unpacked / "model.json", tmp_path)
    model = ServedModel.load(described(tmp_path, description={"model": node, "objective": objective_node}))
    photos = torch.stack([decode(photo(seed), model.image_size) for seed in range(5)])
    with torch.inference_mode():
        expected = counter.probabilities(Normalize()(photos))
        assert torch.equal(model.network()(photos), expected)


def test_bf16_is_near(tmp_path: Path, unpacked: Path) -> None:
    shutil.copytree(unpacked, tmp_path / "bf16")
    exact, quick = ServedModel.load(unpacked), ServedModel.load(described(tmp_path / "bf16", precision="bf16"))
    photos = torch.stack([decode(photo(seed), exact.image_size) for seed in range(3)])
    difference = (exact.probabilities(photos) - quick.probabilities(photos)).abs().max()
    assert 0 < difference < 2e-2
    assert quick.probabilities(photos).dtype == torch.float32


@pytest.mark.parametrize("name", ["model.json", "weights.pt"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", None], ids=["half", "empty", "missing"]
)
def test_a_damaged_archive_is_refused_in_a_sentence(
    tmp_path: Path, unpacked: Path, name: str, damage: Callable[[bytes], bytes] | None
) -> None:
    shutil.copytree(unpacked, tmp_path / "archive")
    file = tmp_path / "archive" / name
    if damage:
        file.write_bytes(damage(file.read_bytes()))
    else:
        file.unlink()
    with pytest.raises(ArchiveError, match=r"package it again\.$"):
        ServedModel.load(tmp_path / "archive")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["head", "backbone"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, unpacked: Path, name: str, value: float) -> None:
    shutil.copytree(unpacked, tmp_path / "archive")
    weights = torch.load(tmp_path / "archive" / "weights.pt", weights_only=True)
    broken = next(weight for key, weight in weights.items() if key.startswith(name) and weight.is_floating_point())
    broken[(-1,) * broken.ndim] = value
    torch.save(weights, tmp_path / "archive" / "weights.pt")
    with pytest.raises(ArchiveError, match=r"its weights hold NaN or infinite numbers\); package it again\.$"):
        ServedModel.load(tmp_path / "archive")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 3}, "format 3"),
        ({"counts": [0, 1]}, "state_dict"),
        ({"limits": {"max_body_kilos": 1}}, "max_body_kilos"),
        (
            {"description": {"model": {"backbone": {"_target_": "no_such_package.net"}}, "objective": OBJECTIVE}},
            "no_such_package",
        ),
    ],
)
def test_an_archive_that_does_not_fit_is_refused(
    tmp_path: Path, unpacked: Path, changes: dict[str, Any], words: str
) -> None:
    shutil.copytree(unpacked, tmp_path / "archive")
    with pytest.raises(ArchiveError, match=words):
        ServedModel.load(described(tmp_path / "archive", **changes))


def test_nodes_are_built_as_by_hydra() -> None:
    layers = [{"_target_": "torch.nn.Linear", "_args_": [3, 4], "bias": False}, {"_target_": "torch.nn.ReLU"}]
    built = instantiate({"_target_": "torch.nn.Sequential", "_args_": layers})
    assert [type(layer) for layer in built] == [nn.Linear, nn.ReLU]
    assert built[0].bias is None
    assert instantiate({"_target_": "builtins.int", "_partial_": True, "base": 2})("101") == 5
    kept = instantiate({"_target_": "builtins.dict", "_recursive_": False, "inner": {"_target_": "builtins.dict"}})
    assert kept == {"inner": {"_target_": "builtins.dict"}}
    assert instantiate({"_target_": "builtins.int.from_bytes", "bytes": b"\1", "byteorder": "big"}) == 1
    with pytest.raises(ImportError):
        instantiate({"_target_": "torch.nn.no.such.thing"})


def test_of_equals_the_first_count_wins_as_in_the_scores() -> None:
    answers = AnswerFormatter("bincounter-1", [2, 3, 5])
    answer = json.loads(answers.format([[0.25, 0.375, 0.375]], parse_accept(None), several=False))
    assert answer == {
        "count": 3,
        "probabilities": {"2": 0.25, "3": 0.375, "5": 0.375},
        "expected_count": 3.5,
        "model": "bincounter-1",
    }


def test_an_answer_below_the_least_confidence_needs_a_person() -> None:
    answers = AnswerFormatter("m", [2, 3], least=0.6)
    rows = [[0.6, 0.4], [0.55, 0.45]]
    formatted = json.loads(answers.format(rows, parse_accept(None), several=True))["predictions"]
    assert [answer["needs_person"] for answer in formatted] == [False, True]
    table = answers.format(rows, parse_accept("text/csv; header=present"), several=True).decode().splitlines()
    assert [line.rpartition(",")[2] for line in table] == ["needs_person", "no", "yes"]


def test_a_median_needs_a_person_by_its_own_probability() -> None:
    answers = AnswerFormatter("m", [2, 3, 5], least=0.3, answer="median")
    formatted = json.loads(answers.format([[0.4, 0.15, 0.45]], parse_accept(None), several=False))
    assert formatted["count"] == 3 and formatted["needs_person"]


def test_probabilities_are_written_exactly() -> None:
    row = torch.rand(200).softmax(0)
    answer = json.loads(AnswerFormatter("m", range(200)).format([row.tolist()], parse_accept(None), several=False))
    assert torch.equal(torch.tensor(list(answer["probabilities"].values())), row)


def test_what_is_no_number_is_no_answer() -> None:
    with pytest.raises(Problem, match="NaN") as raised:
        AnswerFormatter("m", [0, 1]).format([[float("nan"), 0.5]], parse_accept(None), several=False)
    assert raised.value.status == 500


class Gate:
    """A model that computes only once it may; the mean of a photo is its first probability.

    Attributes:
        sizes: of the batches it saw.
        failure: what it raises instead of an answer.
    """

    def __init__(self) -> None:
        self._open = threading.Event()
        self._entered = threading.Semaphore(0)
        self.sizes: list[int] = []
        self.failure: Exception | None = None
        self.warm = False

    def __call__(self, photos: Tensor) -> Tensor:
        if not self.warm:
            self.warm = True
            return torch.zeros(1, 2)
        self.sizes.append(len(photos))
        self._entered.release()
        assert self._open.wait(20)
        if self.failure:
            raise self.failure
        return torch.stack([photos.float().mean((1, 2, 3)), torch.zeros(len(photos))], 1)

    async def entered(self) -> None:
        """Wait until a batch is being computed."""
        await asyncio.to_thread(self._entered.acquire, timeout=20)

    def open(self) -> None:
        self._open.set()


def pixels(value: int) -> Callable[[], Coroutine[None, None, Tensor]]:
    async def read() -> Tensor:
        return torch.full((3, 4, 4), value, dtype=torch.uint8)

    return read


async def unreadable() -> Tensor:
    raise Problem(422, "It cannot be read; send another.")


def batching(scenario: Callable[[Batcher, Gate], Coroutine[None, None, None]], **limits: Any) -> Gate:
    """Run a scenario with a batcher."""
    gate = Gate()

    async def run() -> None:
        batcher = Batcher(gate, Limits(**limits))
        await batcher.start(torch.zeros(3, 4, 4, dtype=torch.uint8))
        try:
            await scenario(batcher, gate)
            assert batcher.waiting == 0
        finally:
            gate.open()
            await batcher.close()
        assert not batcher.ready

    asyncio.run(run())
    return gate


async def settled() -> None:
    """Let what can happen in the loop happen."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_whatever_waits_goes_in_one_batch() -> None:
    async def scenario(batcher: Batcher, gate: Gate) -> None:
        first = asyncio.create_task(batcher.rows([pixels(1)]))
        await gate.entered()
        others = [asyncio.create_task(batcher.rows([pixels(n), pixels(n + 1)])) for n in (2, 4, 6)]
        await settled()
        assert batcher.waiting == 6
        gate.open()
        assert [row[0] for rows in await asyncio.gather(first, *others) for row in rows] == [1, 2, 3, 4, 5, 6, 7]
        assert (batcher.photos, batcher.batches) == (7, {1: 2, 5: 1})

    assert batching(scenario, max_batch=5).sizes == [1, 5, 1]


def test_too_many_are_refused_at_once_and_those_that_wait_are_answered() -> None:
    async def scenario(batcher: Batcher, gate: Gate) -> None:
        running = asyncio.create_task(batcher.rows([pixels(1)]))
        await gate.entered()
        waiting = asyncio.create_task(batcher.rows([pixels(2)] * 3))
        await settled()
        with pytest.raises(Problem) as raised:
            await batcher.rows([pixels(3)] * 2)
        assert raised.value.status == 503
        assert raised.value.headers == {"Retry-After": "1"}
        gate.open()
        assert len(await running) + len(await waiting) == 4

    batching(scenario, max_queue=4)


def test_who_gives_up_leaves_the_queue() -> None:
    async def scenario(batcher: Batcher, gate: Gate) -> None:
        running = asyncio.create_task(batcher.rows([pixels(1)]))
        await gate.entered()
        gone = asyncio.create_task(batcher.rows([pixels(2), pixels(3)]))
        stays = asyncio.create_task(batcher.rows([pixels(4)]))
        await settled()
        gone.cancel()
        running.cancel()
        await settled()
        assert batcher.waiting == 1
        gate.open()
        assert await stays == [[4, 0]]

    assert batching(scenario).sizes == [1, 1]


def test_a_photo_that_cannot_be_read_fails_its_own_request_only() -> None:
    async def scenario(batcher: Batcher, gate: Gate) -> None:
        gate.open()
        good, bad = await asyncio.gather(
            batcher.rows([pixels(1)]), batcher.rows([pixels(2), unreadable]), return_exceptions=True
        )
        assert good == [[1, 0]]
        assert isinstance(bad, Problem)
        assert bad.status == 422

    batching(scenario)


@pytest.mark.parametrize(
    ("failure", "status", "ready"),
    [
        (RuntimeError("some kernel broke"), 500, False),
        (torch.OutOfMemoryError("CUDA out of memory"), 503, True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 503, True),
    ],
)
def test_a_batch_that_fails_is_not_the_end(failure: Exception, status: int, ready: bool) -> None:
    async def scenario(batcher: Batcher, gate: Gate) -> None:
        gate.open()
        gate.failure = failure
        with pytest.raises(Problem) as raised:
            await batcher.rows([pixels(1)])
        assert raised.value.status == status
        assert batcher.ready is ready
        gate.failure = None
        assert await batcher.rows([pixels(2)]) == [[2, 0]]
        assert batcher.ready

    batching(scenario)


def test_a_request_that_is_late_is_answered_and_forgotten(unpacked: Path) -> None:
    class Stuck(ServedModel):
        """Computes the blank photo of the start, then only once it may."""

        hold: threading.Event

        def probabilities(self, photos: Tensor) -> Tensor:
            if photos.any():
                self.hold.wait(20)
            return super().probabilities(photos)

    model = Stuck.load(unpacked)
    model.hold, model.limits = threading.Event(), Limits(timeout_s=1)

    async def run() -> list[Reply]:
        service = Service(model)
        await service.start()
        assert service.ready
        late = await asyncio.gather(*(service.handle(photo(1), None, None) for _ in range(3)))
        while service.ready:  # the model began a little later than the requests
            await asyncio.sleep(0.01)
        assert service.statistics()["queue_length"] == 0
        model.hold.set()
        while not service.ready:
            await asyncio.sleep(0.01)
        late.append(await service.handle(photo(1), None, None))
        await service.close()
        return late

    *late, last = asyncio.run(run())
    assert [reply.status for reply in late] == [504] * 3
    assert last.status == 200


class SlowHost(Fetcher):
    """Fetches nothing until it is released."""

    def __init__(self) -> None:
        super().__init__(Limits())
        self.released = threading.Event()

    def fetch(self, url: str) -> bytes:
        self.released.wait(60)
        return photo()


def test_photos_of_slow_hosts_leave_places_to_others(unpacked: Path) -> None:
    host = SlowHost()

    async def scenario() -> None:
        service = Service(ServedModel.load(unpacked), host)
        await service.start()
        most = service._limits.max_queue // 2
        url = b'{"url": "https://photos.example.org/1.jpg"}'
        slow = [asyncio.create_task(service.handle(url, "application/json", None)) for _ in range(most)]
        await asyncio.sleep(0)
        refused = await service.handle(url, "application/json", None)
        assert (refused.status, refused.headers) == (503, {"Retry-After": "1"})
        assert b"being fetched by URL" in refused.body
        assert (await service.handle(photo(), None, None)).status == 200
        host.released.set()
        assert {reply.status for reply in await asyncio.gather(*slow)} == {200}
        assert (await service.handle(url, "application/json", None)).status == 200
        await service.close()

    asyncio.run(scenario())


def test_what_was_done_is_counted(unpacked: Path) -> None:
    async def run() -> dict[str, float]:
        service = Service(ServedModel.load(unpacked))
        await service.start()
        instances = {"instances": [{"image": base64.b64encode(photo(1, side=300)).decode()}] * 5}
        for _ in range(2):
            assert (await service.handle(json.dumps(instances).encode(), "application/json", None)).status == 200
        statistics = service.statistics()
        await service.close()
        return statistics

    done = asyncio.run(run())
    assert done["photos"] == 10
    batches = {name: number for name, number in done.items() if name.startswith("batches_of_")}
    assert sum(int(name.removeprefix("batches_of_")) * number for name, number in batches.items()) == 10
    assert done["queue_length"] == 0
    assert done["decode_seconds"] > 0
    assert done["forward_seconds"] > 0
