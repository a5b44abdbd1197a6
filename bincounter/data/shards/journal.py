"""The notes of a packing under way, by which the same call goes on after a kill."""

import json
from pathlib import Path

from bincounter.data.shards.index import Place

JOURNAL = ".packing"


class Journal:
    """The places of the photos in all shards that are whole, a line per shard.

    A line is written after its shard; torn or missing ones mean a shard that is packed again.

    Args:
        folder: of the shards.
        plan: names what is packed, and how; the notes of another plan are not gone on with.
    """

    def __init__(self, folder: Path, plan: str) -> None:
        self._folder, self._path = folder, folder / JOURNAL
        self._plan = json.dumps(plan)

    def exists(self) -> bool:
        """Whether a packing was begun in the folder and not ended."""
        return self._path.exists()

    def finished(self) -> list[list[Place]]:
        """Read the places in the shards that are there whole, and begin the notes anew if there are none."""
        shards: list[list[Place]] = []
        try:
            plan, *lines = self._path.read_text(encoding="utf-8").splitlines()
            if plan == self._plan:
                for line in lines:
                    size, places = json.loads(line)
                    shard = [Place(*place) for place in places]
                    if (self._folder / shard[0].shard).stat().st_size != size:
                        break
                    shards.append(shard)
        except (OSError, ValueError, TypeError, IndexError):
            pass  # what was read until then counts
        self._begin(shards)
        return shards

    def note(self, shard: list[Place]) -> None:
        """Note that a shard is whole."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._line(shard))

    def close(self) -> None:
        """The folder is whole: nothing is left to go on with."""
        self._path.unlink()

    def _begin(self, shards: list[list[Place]]) -> None:
        self._path.write_text("".join([self._plan + "\n", *map(self._line, shards)]), encoding="utf-8")

    def _line(self, shard: list[Place]) -> str:
        return json.dumps([(self._folder / shard[0].shard).stat().st_size, shard]) + "\n"
