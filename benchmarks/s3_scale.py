"""Memory for 200,000 objects against 5,000, and the time of a re-sync in which nothing changed."""

import os
import re
import shutil
import statistics
from pathlib import Path

from s3_peers import OURS, S5CMD, Sample, check, clients, measure
from s3_server import SENT, Server, make_objects

SIZE = 1000  # bytes; on disk each takes a block of 4 kB


def at_scale(folder: Path, *, few: int, many: int, rounds: int) -> dict[str, float | None]:
    """Fetch, re-sync and send few and many objects, and have every client re-sync the many.

    Args:
        folder: for all of it; 3 GB for 200,000 objects.
        few: objects of the smaller bucket.
        many: objects of the larger bucket.
        rounds: re-syncs of each client.
    """
    for number in (few, many):
        make_objects(folder / "served" / f"bins-{number}", number=number, size=SIZE)
    with Server(folder / "served") as server:
        print(f"\n{'bincounter, objects of 1 kB':30}{'peak MB':>10}{'s':>8}")
        peaks = {number: _peaks(server, number) for number in (few, many)}
        again = _again(server, many, rounds)
    ours, s5cmd = again[OURS], again.get(S5CMD)
    return {
        **{f"{job}_memory_{many}_over_{few}": peaks[many][job] / peak for job, peak in peaks[few].items()},
        f"unchanged_{many}_over_s5cmd": s5cmd.wall / ours.wall if s5cmd else None,
    }


def _peaks(server: Server, number: int) -> dict[str, float]:
    """Peak memory in MB of each operation of bincounter; fetched files stay."""
    ours = clients()[0]
    bucket, target, log = f"bins-{number}", server.root.parent / OURS, server.root.parent / "client.log"
    assert ours.sending is not None
    server.keys(bucket)  # it reads all files for their MD5s
    jobs = {
        "fetched": ours.fetching(bucket, target, server.endpoint),
        "unchanged": ours.fetching(bucket, target, server.endpoint),
        "sent": ours.sending(server.root / bucket, f"s3://{SENT}/{bucket}", server.endpoint),
    }
    peaks = {}
    for job, command in jobs.items():
        sample = measure(server, command, log)
        peak = re.search(r"VmHWM:\s+(\d+) kB", log.read_text())
        assert peak is not None
        peaks[job] = int(peak[1]) * 1024 / 1e6
        print(f"{job:12}{number:>18,}{peaks[job]:>10.0f}{sample.wall:>8.1f}")
    check(target / ours.below.format(bucket=bucket), number=number, size=SIZE)
    check(server.root / SENT / bucket, number=number, size=SIZE)
    return peaks


def _again(server: Server, number: int, rounds: int) -> dict[str, Sample]:
    """Medians of re-syncs without changes; the peers use the server's own files as their local copy."""
    bucket, log = f"bins-{number}", server.root.parent / "client.log"
    measured: dict[str, list[Sample]] = {}
    for _ in range(rounds):
        for client in clients():
            target = server.root.parent / client.label
            if not target.exists():
                shutil.copytree(server.root / bucket, target, copy_function=os.link)
            fetched = target / client.below.format(bucket=bucket)
            before = check(fetched, number=number, size=SIZE)
            sample = measure(server, client.fetching(bucket, target, server.endpoint), log)
            measured.setdefault(client.name, []).append(sample)
            if check(fetched, number=number, size=SIZE) != before:
                raise RuntimeError(f"{client.name} fetched again what had not changed")
    medians = {name: Sample(*map(statistics.median, zip(*its, strict=True))) for name, its in measured.items()}
    print(f"\n{f'unchanged, {number:,} objects':30}{'s':>8}{'client CPU':>12}{'server CPU':>12}")
    for name, (wall, _, cpu, server_cpu) in medians.items():
        print(f"{name:30}{wall:>8.2f}{cpu:>12.2f}{server_cpu:>12.2f}")
    return medians
