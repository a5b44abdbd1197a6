"""Manifests on disk: one file per scanned source, whole or not at all, and worth nothing when it is broken."""

import json
import logging
from pathlib import Path

import numpy as np

from bincounter.data.photo_file import PhotoFile
from bincounter.data.records import BinRecord, Manifest, Refusal
from bincounter.files import replacing

log = logging.getLogger(__name__)


def save_manifest(file: Path, manifest: Manifest, signature: str) -> None:
    """Keep a manifest with the signature of the inputs it was made from."""
    prefix = f"{manifest.root}/"
    header = {
        "signature": signature,
        "digest": manifest.digest,
        "ids": [record.id for record in manifest.records],
        "paths": [str(record.file.path).removeprefix(prefix) for record in manifest.records],
        "splits": manifest.given_splits,
        "refusals": [(refusal.path, refusal.reason) for refusal in manifest.refusals],
    }
    with replacing(file, "wb") as opened:
        np.savez(
            opened,
            header=np.frombuffer(json.dumps(header).encode(), np.uint8),
            counts=np.array([record.count for record in manifest.records], np.int64),
            groups=np.array([record.group for record in manifest.records], np.int64),
            sizes=manifest.sizes,
            content=manifest.content,
        )


def load_manifest(file: Path, root: Path, signature: str) -> Manifest | None:
    """Read a manifest kept before; ``None`` when there is none, it is broken or its inputs have changed since."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            header = json.loads(kept["header"].tobytes())
            if header["signature"] != signature:
                return None
            rows = zip(header["ids"], header["paths"], kept["counts"].tolist(), kept["groups"].tolist(), strict=True)
            return Manifest(
                root=root,
                records=tuple(BinRecord(id, PhotoFile(root / path), count, group) for id, path, count, group in rows),
                given_splits=tuple(header["splits"]),
                sizes=kept["sizes"],
                content=kept["content"],
                refusals=tuple(Refusal(path, reason) for path, reason in header["refusals"]),
                digest=header["digest"],
            )
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever broken bytes cause: a scan makes a new one
        log.info("%s is broken (%s): scanning again", file, error)
        return None
