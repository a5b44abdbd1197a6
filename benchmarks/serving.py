"""Cost of serving: latency and photos per second of an archive's servers, beside the bare model.

    python benchmarks/serving.py            3 rounds, ResNet50 at 224 pixels; about 15 minutes on 2 cores
    python benchmarks/serving.py --quick    1 round, shorter
    python benchmarks/serving.py --soak     20,000 requests to a small model too: memory, and a killed worker
    python benchmarks/serving.py --hostile  only a small model beside photos that cost it much; 2 minutes

One archive, four ways, one after the other in every round: the bare forward on decoded tensors (the limit), deploy.py's
local server, Ray Serve started as AWS's image starts it, and TorchServe with AWS's PyTorch inference toolkit, in the
environment that `make .venv-torchserve/.installed` builds (left out, and said so, where that is missing). Photos are
JPEGs of original size: those of ../shared/abid, else rendered bins. Weights are random: the time is the same.

Clients are threads of one process with a connection each, which send the next photo as soon as they have an answer.
Server, clients and model share the machine's cores.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from serving_hostile import measure_hostile
from serving_load import Load, load, overload
from serving_peers import Server, local_server, ray_server, torchserve
from serving_subjects import archive_of, bare_forward, photos

CLIENTS = (1, 8, 32)


def main() -> None:
    """Measure, print the tables, and the ratios as one JSON object."""
    options = _options()
    if options.hostile:
        with tempfile.TemporaryDirectory(prefix="bs-") as folder:
            _hostile(Path(folder), photos(256))
        return
    ratios: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory(prefix="bs-") as folder:
        jpegs = photos(256)
        for precision in ("fp32", "bf16"):
            archive = archive_of(Path(folder) / precision, precision=precision)
            print(f"\nResNet50, 224 pixels, {precision}, {len(jpegs)} JPEGs of {_mean_kb(jpegs):.0f} kB")
            ratios |= _measure(archive, jpegs, precision, options)
        if options.soak:
            ratios |= _soak(Path(folder), jpegs)
    print(json.dumps({name: value if value is None else round(value, 3) for name, value in ratios.items()}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, shorter")
    parser.add_argument("--soak", action="store_true", help="20,000 requests too")
    parser.add_argument("--hostile", action="store_true", help="photos that cost much, and nothing else")
    options = parser.parse_args()
    options.rounds, options.seconds = (1, 6.0) if options.quick else (3, 15.0)
    return options


def _hostile(folder: Path, jpegs: list[bytes]) -> None:
    """Latency and rate of others' photos, memory of all the server's processes, and answers to hostile photos."""
    archive = archive_of(folder / "small", precision="fp32", backbone="cnn", image_size=64)
    with local_server(archive) as server:
        print(f"{'beside':32}{'p50 ms':>10}{'p99 ms':>10}{'photos/s':>10}{'memory':>10}")
        measure_hostile(server, jpegs, seconds=10)


def _mean_kb(jpegs: list[bytes]) -> float:
    return statistics.fmean(map(len, jpegs)) / 1e3


def _measure(archive: Path, jpegs: list[bytes], precision: str, options: argparse.Namespace) -> dict[str, float | None]:
    servers = {"deploy.py, local": local_server, "Ray Serve": ray_server, "TorchServe": torchserve}
    measured: dict[str, dict[int, list[Load]]] = {name: {clients: [] for clients in CLIENTS} for name in servers}
    bare = []
    for _ in range(options.rounds):
        bare.append(bare_forward(archive, jpegs, seconds=options.seconds / 3))
        for name, start in servers.items():
            server = start(archive)
            if server is None:
                continue
            with server:
                _warm_up(server, jpegs)
                for clients in CLIENTS:
                    measured[name][clients].append(load(server.url, jpegs, clients=clients, seconds=options.seconds))
    decode, forward, limit = (statistics.median(column) for column in zip(*bare, strict=True))
    print(f"{'':24}{'clients':>8}{'p50 ms':>10}{'p99 ms':>10}{'photos/s':>10}")
    print(f"{'decode + forward':24}{1:>8}{1e3 * (decode + forward):>10.1f}{'':>10}{1 / (decode + forward):>10.1f}")
    print(f"{'bare forward, batches':24}{'':>8}{'':>10}{'':>10}{limit:>10.1f}")
    for name, by_clients in measured.items():
        for clients, loads in by_clients.items():
            if loads:
                p50, p99, rate = (statistics.median(column) for column in zip(*loads, strict=True))
                print(f"{name:24}{clients:>8}{1e3 * p50:>10.1f}{1e3 * p99:>10.1f}{rate:>10.1f}")
    return _ratios(measured, decode + forward, limit, precision)


def _ratios(
    measured: dict[str, dict[int, list[Load]]], alone: float, limit: float, precision: str
) -> dict[str, float | None]:
    def middle(name: str, clients: int, field: str) -> float | None:
        values = [getattr(one, field) for one in measured[name][clients]]
        return statistics.median(values) if values else None

    ours, most = "deploy.py, local", CLIENTS[-1]
    p50, rate, peer = middle(ours, 1, "p50"), middle(ours, most, "rate"), middle("TorchServe", most, "rate")
    ray_p50, ray_rate = middle("Ray Serve", 1, "p50"), middle("Ray Serve", most, "rate")
    assert p50 is not None
    assert rate is not None
    return {
        f"{precision}_p50_over_decode_and_forward": p50 / alone,
        f"{precision}_throughput_over_limit": rate / limit,
        f"{precision}_throughput_over_torchserve": rate / peer if peer else None,
        f"{precision}_ray_p50_over_decode_and_forward": ray_p50 / alone if ray_p50 else None,
        f"{precision}_ray_throughput_over_limit": ray_rate / limit if ray_rate else None,
    }


def _warm_up(server: Server, jpegs: list[bytes]) -> None:
    load(server.url, jpegs, clients=4, seconds=2)


def _soak(folder: Path, jpegs: list[bytes]) -> dict[str, float | None]:
    """20,000 requests: resident memory of all the server's processes, then a flood, then a killed worker."""
    archive = archive_of(folder / "small", precision="fp32", backbone="cnn", image_size=64)
    server = local_server(archive)
    with server:
        load(server.url, jpegs, clients=8, requests=4000)
        before = server.resident_mb()
        load(server.url, jpegs, clients=8, requests=16_000)
        after = server.resident_mb()
        print(f"\nresident memory: {before:.0f} MB after 4,000 requests, {after:.0f} MB after 20,000")
        flood = overload(server.url, jpegs, clients=400)
        print(f"400 requests at once: {flood.statuses}, the slowest refusal after {1e3 * flood.slowest_refusal:.0f} ms")
        started = time.perf_counter()
        killed = overload(server.url, jpegs, clients=32, meanwhile=server.kill_worker)
        seconds = time.perf_counter() - started
        print(f"worker killed under 32 requests: {killed.statuses}, all ended within {seconds:.1f} s")
        server.wait_until_ready()
        print("and back")
    return {"memory_after_20000_over_4000": after / before}


if __name__ == "__main__":
    main()
