"""A small data set made on the fly, as a manifest with a leak-free split."""

from pathlib import Path

import numpy as np
from made_runs import SHARES, SUPPORT, drawn_photo

from bincounter.data.records import BinRecord, Manifest, PhotoFile, RejectedInput
from bincounter.report.explore import write_data_report

HOSTILE = "bin-images/<script>document.title='owned'</script>.jpg"


def made_manifest(root: Path, *, photos: int = 150, varied: bool = True) -> Manifest:
    """Draw photos in groups of one to three, of 0 to 5 items, and refuse three inputs."""
    rng = np.random.default_rng(3)
    group_sizes = rng.choice([1, 2, 3], photos, p=[0.5, 0.35, 0.15])
    groups = np.repeat(np.arange(photos), group_sizes)[:photos]
    counts = rng.choice([0, *SUPPORT], photos, p=[0.05, *(0.95 * np.array(SHARES))])
    sizes = np.stack([rng.integers(304, 866, photos), rng.integers(250, 600, photos)], axis=1).astype(np.int32)
    sizes = sizes if varied else np.full_like(sizes, 224)
    records = []
    for number, (count, group, size) in enumerate(zip(counts, groups, sizes, strict=True)):
        path = root / f"{number:05}.jpg"
        path.write_bytes(drawn_photo(path.stem, (int(size[0]), int(size[1]))))
        records.append(BinRecord(path.stem, PhotoFile(path), int(count), int(group)))
    refusals = (RejectedInput("bin-images/9.jpg", "truncated"), RejectedInput("bin-images/8.jpg", "truncated"))
    return Manifest(
        root=root,
        records=tuple(records),
        given_splits=(None,) * photos,
        sizes=sizes,
        content=np.arange(photos, dtype=np.uint64),
        refusals=(*refusals, RejectedInput(HOSTILE, "not an image")),
        digest="0a1b2c3d4e5f6071",
    )


def made_split(manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Keep counts 1 to 5, and send whole groups to training (0), validation (1) or test (2)."""
    keep = np.array([i for i, record in enumerate(manifest.records) if record.count in SUPPORT])
    groups = np.array([manifest.records[i].group for i in keep])
    return keep, np.array([0, 0, 0, 1, 2], dtype=np.int8)[groups % 5]


def write_made_data_report(folder: Path, manifest: Manifest | None = None) -> Path:
    """Write ``data.html`` of a made data set."""
    manifest = manifest or made_manifest(folder)
    settings = {"method": "grouped", "fractions": [0.8, 0.1, 0.1], "seed": 0}
    keep, assignment = made_split(manifest)
    return write_data_report(folder / "data.html", manifest, keep, assignment, source="bins", settings=settings)
