"""Photos that cost a server much and their sender little, sent beside the photos of others."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Sequence

from PIL import Image
from serving_load import Load, during, load
from serving_peers import Server

HOSTILE_CLIENTS, INNOCENT_CLIENTS = 4, 2


def hostile_bodies() -> dict[str, tuple[bytes, str]]:
    """Bodies of requests and their content types, by their defect."""
    large, wide = _png(10_000, depth=16, colour=6), base64.b64encode(_png(10_000, depth=8, colour=2)).decode()
    progressive = _jpeg(Image.new("L", (9000, 9000), 128), progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    many_scans = progressive[:-2] + scan * 80 + b"\xff\xd9"
    jpeg = _jpeg(Image.new("RGB", (640, 480)))
    return {
        "10000x10000 RGBA16 PNG": (large, "image/png"),
        "32 PNGs of 100 MP in one JSON": (
            json.dumps({"instances": [{"image": wide}] * 32}).encode(),
            "application/json",
        ),
        "90 scans of 81 MP": (many_scans, "image/jpeg"),
        "12 MB of padding": (jpeg[:2] + b"\xff" * 12_000_000 + jpeg[2:], "image/jpeg"),
        "12 MB of padding behind": (jpeg[:-2] + b"\xff" * 12_000_000 + jpeg[-2:], "image/jpeg"),
        "JPEGs of 12 MP": (_jpeg(Image.effect_noise((4000, 3000), 60).convert("RGB"), quality=85), "image/jpeg"),
    }


def measure_hostile(server: Server, jpegs: Sequence[bytes], *, seconds: float) -> dict[str, float]:
    """Latency of two clients alone and beside four hostile ones, and the server's memory; returns ratios of p99."""
    load(server.url, jpegs, clients=INNOCENT_CLIENTS, seconds=2)
    idle = load(server.url, jpegs, clients=INNOCENT_CLIENTS, seconds=seconds)
    _print("alone", idle, server, {})
    ratios = {}
    for name, (body, content_type) in hostile_bodies().items():
        seen, statuses = during(
            server.url,
            body,
            content_type,
            clients=1 if "one JSON" in name else HOSTILE_CLIENTS,
            work=lambda: load(server.url, jpegs, clients=INNOCENT_CLIENTS, seconds=seconds),
        )
        _print(name, seen, server, statuses)
        ratios[f"p99 beside {name}"] = seen.p99 / idle.p99
    return ratios


def _print(name: str, seen: Load, server: Server, statuses: dict[int | str, int]) -> None:
    memory = f"{server.resident_mb():.0f} MB"
    print(f"{name:32}{1e3 * seen.p50:>10.1f}{1e3 * seen.p99:>10.1f}{seen.rate:>10.1f}{memory:>10}  {statuses or ''}")


def _jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def _png(side: int, *, depth: int, colour: int) -> bytes:
    """A black square of a few hundred kilobytes."""
    packer = zlib.compressobj(9)
    row = bytes(1 + side * {2: 3, 6: 4}[colour] * depth // 8)
    pixels = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    written = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)
