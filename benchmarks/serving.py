"""Cost of serving: latency and photos per second of an archive's servers, beside the bare model.

    python benchmarks/serving.py            3 rounds, ResNet50 at 224 pixels; about 25 minutes on 2 cores
    python benchmarks/serving.py --quick    1 round, shorter
    python benchmarks/serving.py --soak     20,000 requests to a small model too: memory, and a killed worker
    python benchmarks/serving.py --hostile  only a small model beside photos that cost it much; 2 minutes

One model, one way after the other in every round: the bare forward of torch on decoded tensors, deploy.py's local
server with each engine, Ray Serve started as AWS's image starts it, and TorchServe with AWS's PyTorch inference
toolkit, in the environment that `make .venv-torchserve/.installed` builds (left out, and said so, where that is
missing). Photos are JPEGs of original size: those of ../shared/abid, else rendered bins. Weights are random: the time
is the same. The cold start lasts from the start of the process to its first answer; the archive is packed already.

Clients are threads of one process with a connection each, which send the next photo as soon as they have an answer.
Server, clients and model share the machine's cores.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from serving_hostile import measure_hostile
from serving_load import Load, load, overload
from serving_peers import Server, local_server, ray_server, torchserve
from serving_subjects import archive_of, bare_forward, capabilities, photos

CLIENTS = (1, 8, 32)
Start = Callable[[Path], Server | None]


def main() -> None:
    """Measure, print the tables, and the ratios as one JSON object."""
    options = _options()
    if options.hostile:
        with tempfile.TemporaryDirectory(prefix="bs-") as folder:
            _hostile(Path(folder), photos(256))
        return
    with tempfile.TemporaryDirectory(prefix="bs-") as folder:
        jpegs = photos(256)
        print(f"ResNet50, 224 pixels, {len(jpegs)} JPEGs of {_mean_kb(jpegs):.0f} kB; {capabilities()}")
        ratios = _measure(Path(folder), jpegs, options)
        if options.soak:
            ratios |= _soak(Path(folder), jpegs)
    print(json.dumps({name: round(value, 3) for name, value in ratios.items()}))


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


def _subjects(folder: Path, jpegs: list[bytes]) -> dict[str, tuple[Start, Path]]:
    """Servers by name, each with its archive."""
    settings = [("torch", "fp32"), ("torch", "bf16")]
    settings += [(engine, precision) for precision in ("fp32", "int8") for engine in ("onnxruntime", "openvino")]
    archives = {
        f"{engine} {precision}": archive_of(
            folder / f"{engine}-{precision}", precision=precision, engine=engine, calibration=jpegs[:32]
        )
        for engine, precision in settings
    }
    servers = {"Ray Serve, torch fp32": ray_server, "TorchServe, torch fp32": torchserve}
    return {name: (local_server, archive) for name, archive in archives.items()} | {
        name: (start, archives["torch fp32"]) for name, start in servers.items()
    }


def _measure(folder: Path, jpegs: list[bytes], options: argparse.Namespace) -> dict[str, float]:
    subjects = _subjects(folder, jpegs)
    measured: dict[str, dict[int, list[Load]]] = {name: {clients: [] for clients in CLIENTS} for name in subjects}
    cold: dict[str, list[float]] = {name: [] for name in subjects}
    bare = []
    for _ in range(options.rounds):
        bare.append(bare_forward(subjects["torch fp32"][1], jpegs, seconds=options.seconds / 3))
        for name, (start, archive) in subjects.items():
            began = time.perf_counter()
            server = start(archive)
            if server is None:
                continue
            with server:
                load(server.url, jpegs, clients=1, requests=1)
                cold[name].append(time.perf_counter() - began)
                _warm_up(server, jpegs)
                for clients in CLIENTS:
                    measured[name][clients].append(load(server.url, jpegs, clients=clients, seconds=options.seconds))
    decode, forward, limit = (statistics.median(column) for column in zip(*bare, strict=True))
    print(f"decode + forward of torch fp32: {1e3 * (decode + forward):.1f} ms; in batches {limit:.1f} photos/s")
    heads = "".join(f"{f'{clients} p50 ms':>12}{'p99 ms':>9}{'photos/s':>10}" for clients in CLIENTS)
    print(f"{'':24}{'MB':>7}{'cold s':>8}{heads}")
    found = {name: loads for name, loads in measured.items() if cold[name]}
    medians = {
        name: {n: Load(*(statistics.median(column) for column in zip(*by[n], strict=True))) for n in CLIENTS}
        for name, by in found.items()
    }
    for name, by in medians.items():
        cells = "".join(f"{1e3 * one.p50:>12.1f}{1e3 * one.p99:>9.1f}{one.rate:>10.1f}" for one in by.values())
        size = subjects[name][1].stat().st_size / 1e6
        print(f"{name:24}{size:>7.0f}{statistics.median(cold[name]):>8.1f}{cells}")
    return _ratios(medians)


def _ratios(medians: dict[str, dict[int, Load]]) -> dict[str, float]:
    """Photos per second of most clients, and the median latency of one, over those of torch in fp32."""
    reference, most = medians["torch fp32"], CLIENTS[-1]
    ratios = {}
    for name, by in medians.items():
        if by is not reference:
            ratios[f"{name}: throughput"] = by[most].rate / reference[most].rate
            ratios[f"{name}: p50"] = by[1].p50 / reference[1].p50
    return ratios


def _warm_up(server: Server, jpegs: list[bytes]) -> None:
    load(server.url, jpegs, clients=4, seconds=2)


def _soak(folder: Path, jpegs: list[bytes]) -> dict[str, float]:
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
