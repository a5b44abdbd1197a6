"""The gate before anything is served: a checkpoint and its archive have to give the same answers.

Photos go as bytes through what trained the model and through the unpacked archive, which runs in a process of its own
that sees nothing of bincounter but what the archive carries. Both compute on the CPU, training in single precision.
"""

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bincounter.data.preprocessing import Normalize, PhotoError, decode
from bincounter.errors import UserError
from bincounter.model.checkpoints import load_counter
from bincounter.serving.application.service import Reply
from bincounter.serving.local.backend import Worker
from bincounter.serving.packing.unpacking import unpack

BOUNDS = {"fp32": 1e-4, "bf16": 2e-2}
"""By how much a probability of the archive may differ from training's, by the archive's precision."""

_BATCH = 16
_REFUSED = range(400, 500)
_ADVICE = "nothing is served: package the checkpoint anew with action=package, by the bincounter that trained it"


@dataclass(frozen=True)
class Parity:
    """That the answers agree, and how well.

    Attributes:
        photos: compared.
        largest: difference between two probabilities.
        near_ties: photos whose two largest probabilities are so close that the count may differ.
        bound: that no difference may exceed.
    """

    photos: int
    largest: float
    near_ties: int
    bound: float

    def __str__(self) -> str:
        ties = f", {self.near_ties} of them near-ties" if self.near_ties else ""
        return (
            f"Parity: {self.photos} photos{ties}, largest difference of a probability {self.largest:.1e}, "
            f"bound {self.bound:g}."
        )


def check_parity(
    checkpoint: Path, archive: Path, photos: Mapping[str, bytes], *, trusted: Sequence[str] = ()
) -> Parity:
    """Compare a checkpoint's answers with its archive's.

    Args:
        checkpoint: of a run.
        archive: the ``model.tar.gz`` made of it.
        photos: contents by name; what training refuses as no photo, the archive has to refuse too.
        trusted: dotted prefixes of foreign callables the checkpoint may be built from.

    Raises:
        UserError: they differ, or the archive cannot answer at all; the message says for which photo and by how much.
        ResourceError: memory, disk or time gave out.
    """
    expected, counts = _trained(checkpoint, photos, trusted)
    with tempfile.TemporaryDirectory(prefix="bincounter-parity-") as folder:
        replies, precision = asyncio.run(_archived(unpack(archive, Path(folder) / "archive"), photos))
    bound = BOUNDS[precision]
    differences = [
        _difference(name, probabilities, replies[name], counts, bound)
        for name, probabilities in expected.items()
        if probabilities is not None
    ]
    for name, probabilities in expected.items():
        if probabilities is None and replies[name].status not in _REFUSED:
            raise UserError(f"{name} is refused in training and answered by the archive; {_ADVICE}")
    near = sum(_near_tie(row, bound) for row in expected.values() if row is not None)
    return Parity(len(photos), max(differences, default=0.0), near, bound)


def _trained(
    checkpoint: Path, photos: Mapping[str, bytes], trusted: Sequence[str]
) -> tuple[dict[str, Tensor | None], tuple[int, ...]]:
    """``float32[K]`` for each photo as training computes it; ``None`` for those it refuses."""
    counter, description = load_counter(checkpoint, trusted)
    normalize, size = Normalize(), description["image_size"]
    read = {name: _decoded(data, size) for name, data in photos.items()}
    names = [name for name, pixels in read.items() if pixels is not None]
    answers: dict[str, Tensor | None] = dict.fromkeys(read)
    with torch.inference_mode():
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            pixels = torch.stack([pixels for name in batch if (pixels := read[name]) is not None])
            answers |= dict(zip(batch, counter.probabilities(normalize(pixels)), strict=True))
    return answers, counter.counts


def _decoded(data: bytes, size: int) -> Tensor | None:
    try:
        return decode(data, size)
    except PhotoError:
        return None


async def _archived(folder: Path, photos: Mapping[str, bytes]) -> tuple[dict[str, Reply], str]:
    worker = await Worker.start(folder, guard=True, CUDA_VISIBLE_DEVICES="", PYTHONPATH="")
    try:
        replies = {name: await worker.ask(data, None, "application/json") for name, data in photos.items()}
        return replies, worker.ready["precision"]
    finally:
        await worker.close()


def _difference(name: str, trained: Tensor, reply: Reply, counts: Sequence[int], bound: float) -> float:
    """The largest difference between two probabilities of a photo.

    Raises:
        UserError: it is above the bound, or the counts differ where they may not.
    """
    answer = json.loads(reply.body)
    if reply.status != 200:
        raise UserError(f"{name} is counted in training and refused by the archive ({answer['error']}); {_ADVICE}")
    served = torch.tensor([answer["probabilities"].get(str(count), float("nan")) for count in counts])
    differences = (served - trained).abs().nan_to_num(nan=torch.inf)
    worst = int(differences.argmax())
    if differences[worst] > bound:
        precise = "; leave precision=bf16 out, or" if bound > BOUNDS["fp32"] else ";"
        raise UserError(
            f"{name}: the probability of count {counts[worst]} is {trained[worst]:.6f} in training and "
            f"{served[worst]:.6f} in the archive, and they may differ by {bound:g}{precise} {_ADVICE}"
        )
    count = counts[int(trained.argmax())]
    if answer["count"] != count and not _near_tie(trained, bound):
        raise UserError(f"{name} counts {count} in training and {answer['count']} in the archive; {_ADVICE}")
    return float(differences[worst])


def _near_tie(probabilities: Tensor, bound: float) -> bool:
    first, second = probabilities.topk(2).values
    return bool(first - second < 2 * bound)
