"""Cost of moving bins between S3 and disk: bincounter beside aws s3 sync, s5cmd and boto3 in threads.

    python benchmarks/s3.py            3 rounds of 5,000 objects of 20 and of 55 kB; about 15 minutes on 2 cores
    python benchmarks/s3.py --quick    1 round of 500
    python benchmarks/s3.py --memory   200,000 objects of 1 kB too: peak memory, and re-syncs; as long again, 3 GB

One server (rclone), and every client in every round, one after the other, as a process of its own whose start counts:

    cold        into an empty folder; the server's files are out of the page cache, though not out of the disk's own
    warm        into an empty folder; the server's files are in the page cache
    unchanged   into the folder that is whole
    in a run    the same, without the start of a process: what a training waits that has its bins here (bincounter only)
    sent        to an empty prefix
    sent again  to the prefix that is whole; bincounter compares contents, the others sizes and times

The server knows all MD5s beforehand, as S3 does, and what one client left to be written is written before the next
starts. "On disk" adds to a client's time what the system then takes to write the rest: who flushes pays for it earlier.
Nothing is deleted before the end, since ext4 takes several times as long for new files soon after others were deleted:
let two minutes pass between two runs.

Clients and server share the machine's cores: the table says how many each kept busy. Its first row is a client that
only throws bodies away, so all that the server can do here.

The peers come from the environment that `make .venv-s3-peers/.installed` builds (left out, and said so, where that is
missing).
"""

import argparse
import json
import math
import os
import re
import statistics
import tempfile
from pathlib import Path

from s3_peers import AWS, OURS, S5CMD, Client, Sample, check, clients, empty, measure
from s3_scale import at_scale
from s3_server import SENT, Limit, Server, limit, make_objects

SIZES = (20, 55)  # kB
FETCHED, SENDING = ("cold", "warm", "unchanged", "in a run"), ("sent", "sent again")
NOTHING_MOVED = ("unchanged", "in a run", "sent again")

Measured = dict[tuple[str, str], list[Sample]]


def main() -> None:
    """Measure, print the tables, and the ratios as one JSON object."""
    options = _options()
    ratios: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory(prefix="bs-") as folder:
        served = Path(folder) / "served"
        for size in SIZES:
            make_objects(served / f"bins-{size}", number=options.objects, size=1000 * size)
        with Server(served) as server:
            for size in SIZES:
                ratios |= _compare(server, size, options)
        if options.memory:
            ratios |= at_scale(Path(folder) / "many", few=options.objects, many=options.many, rounds=options.rounds)
    print(json.dumps({name: value if value is None else round(value, 3) for name, value in ratios.items()}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of 500 objects; --memory with 5,000")
    parser.add_argument("--memory", action="store_true", help="200,000 objects of 1 kB too")
    options = parser.parse_args()
    options.rounds, options.objects, options.many = (1, 500, 5_000) if options.quick else (3, 5_000, 200_000)
    return options


def _compare(server: Server, size: int, options: argparse.Namespace) -> dict[str, float | None]:
    bucket = f"bins-{size}"
    server.keys(bucket)  # it reads all files for their MD5s
    most = limit(server, bucket)
    measured: Measured = {}
    for number in range(options.rounds):
        for client in clients():
            turn = f"{bucket}-{number}-{client.label}"
            taken = _fetch(server, client, bucket, options.objects, 1000 * size, turn)
            taken |= _send(server, client, bucket, options.objects, 1000 * size, turn)
            for state, sample in taken.items():
                measured.setdefault((client.name, state), []).append(sample)
    return _report(measured, most, size, options.objects)


def _fetch(server: Server, client: Client, bucket: str, number: int, size: int, turn: str) -> dict[str, Sample]:
    """Measure a client with each state of the target."""
    log = server.root.parent / "client.log"
    taken = {}
    for state, prepare in (("cold", server.drop_pages), ("warm", server.load_pages)):
        target = server.root.parent / f"{turn}-{state}"
        target.mkdir()
        fetched = target / client.below.format(bucket=bucket)
        command = client.fetching(bucket, target, server.endpoint)
        prepare(bucket)
        taken[state] = measure(server, command, log)
        whole = check(fetched, number=number, size=size)
        if state == "warm":
            taken["unchanged"] = measure(server, command, log)
            if check(fetched, number=number, size=size) != whole:
                raise RuntimeError(f"{client.name} fetched again what had not changed")
            if (within := re.search("fetch: (.*)", log.read_text())) is not None:
                taken["in a run"] = Sample(float(within[1]), float(within[1]), math.nan, math.nan)
        empty(target)
    return taken


def _send(server: Server, client: Client, bucket: str, number: int, size: int, turn: str) -> dict[str, Sample]:
    """Measure a client with an empty prefix, and with a whole one."""
    if client.sending is None:
        return {}
    command = client.sending(server.root / bucket, f"s3://{SENT}/{turn}", server.endpoint)
    taken = {}
    for state in SENDING:
        taken[state] = measure(server, command, server.root.parent / "client.log")
        check(server.root / SENT / turn, number=number, size=size)
        server.keys(SENT, turn)  # it reads all files for their MD5s
    empty(server.root / SENT / turn)
    return taken


def _report(measured: Measured, most: Limit, size: int, objects: int) -> dict[str, float | None]:
    """Print the table, and return its ratios."""
    cores = os.cpu_count()
    print(f"\n{objects:,} objects of {size} kB: time, and the cores that client and server kept busy, of {cores}")
    print(f"{'':30}{'s':>8}{'on disk':>9}{'objects/s':>11}{'MB/s':>7}{'client ms':>11}{'client':>8}{'server':>8}")
    print(
        f"{'bodies thrown away':30}{objects / most.rate:>8.2f}{'':>9}{most.rate:>11.0f}{most.rate * size / 1e3:>7.0f}"
        f"{1e3 * most.client:>11.3f}{most.rate * most.client:>8.2f}{most.rate * most.server:>8.2f}"
    )
    middle = {key: Sample(*map(statistics.median, zip(*samples, strict=True))) for key, samples in measured.items()}
    for state in (*FETCHED, *SENDING):
        for (name, its), (wall, on_disk, cpu, server_cpu) in middle.items():
            if its == state:
                moved = "" if state in NOTHING_MOVED else f"{objects * size / 1e3 / wall:.0f}"
                print(
                    f"{state:11}{name:19}{wall:>8.2f}{on_disk:>9.2f}{objects / wall:>11.0f}{moved:>7}"
                    f"{1e3 * cpu / objects:>11.3f}{cpu / wall:>8.2f}{server_cpu / wall:>8.2f}"
                )
    wall, _, cpu, server_cpu = middle[OURS, "warm"]
    print(
        f"bincounter, warm: {objects / wall / most.rate:.0%} of what the server can send; "
        f"it and the server were busy on {cpu / wall:.1f} + {server_cpu / wall:.1f} of {cores} cores"
    )
    return _ratios(middle, most, f"{size}kB", objects)


def _ratios(middle: dict[tuple[str, str], Sample], most: Limit, size: str, objects: int) -> dict[str, float | None]:
    """Speed of bincounter over a peer's, and its CPU time over a peer's; none where the peer is missing."""
    ratios: dict[str, float | None] = {}
    for state in (*FETCHED, *SENDING):
        ours = middle[OURS, state]
        theirs = "unchanged" if state == "in a run" else state
        peers = {name: sample for (name, its), sample in middle.items() if its == theirs and name != OURS}
        label = f"{size}_{state.replace(' ', '_')}"
        for short, named in (("aws", [AWS]), ("s5cmd", [S5CMD]), ("fastest", list(peers))):
            walls = [peers[name].wall for name in named if name in peers]
            ratios[f"{label}_over_{short}"] = min(walls) / ours.wall if walls else None
        if not math.isnan(ours.cpu):
            least = min((sample.cpu for sample in peers.values()), default=None)
            ratios[f"{label}_cpu_over_least"] = ours.cpu / least if least else None
    ratios[f"{size}_warm_over_server_limit"] = objects / middle[OURS, "warm"].wall / most.rate
    return ratios


if __name__ == "__main__":
    main()
