"""Output of containers, sent to CloudWatch Logs and searched for metrics."""

import math
import re
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

GROUP = "/aws/sagemaker/TrainingJobs"

# Limits of PutLogEvents: 256 KiB an event, 1 MiB and 10,000 events a call. One character takes up to four bytes.
_EVENT_CHARACTERS = 60_000
_CALL_CHARACTERS = 240_000
_CALL_EVENTS = 5_000


class Metrics:
    """Values of ``MetricDefinitions``, found in a log by their regular expressions."""

    def __init__(self, definitions: list[dict[str, str]]) -> None:
        self._patterns = {definition["Name"]: re.compile(definition["Regex"]) for definition in definitions}
        self._found: dict[str, list[dict[str, Any]]] = {}

    def read(self, line: str, moment: float) -> None:
        """Search one line for every metric; ``moment`` is the line's time in seconds since 1970."""
        for name, pattern in self._patterns.items():
            match = pattern.search(line)
            if match is None or not match.groups():
                continue
            try:
                value = float(match[1])
            except (TypeError, ValueError):  # not a number: ignored, as by AWS
                continue
            emitted = {"MetricName": name, "Value": value, "Timestamp": moment}
            self._found.setdefault(name, []).append(emitted)

    def final(self) -> list[dict[str, Any]]:
        """Return ``FinalMetricDataList``: the last value of each metric."""
        return [emitted[-1] for emitted in list(self._found.values())]

    def values(self, name: str) -> list[float]:
        """Return the finite values of one metric, in order."""
        values = [emitted["Value"] for emitted in list(self._found.get(name, []))]
        return [value for value in values if math.isfinite(value)]


class LogStream:
    """One log stream: a thread reads a container's output, :meth:`send` sends it in order.

    Args:
        logs: boto3 client of CloudWatch Logs.
        name: name of the stream, which is created.
        output: the container's stdout and stderr.
        metrics: metrics to search every line for.
        group: group of the stream.
    """

    def __init__(self, logs: Any, name: str, output: IO[bytes], metrics: Metrics, group: str = GROUP) -> None:
        self._logs = logs
        self._group = group
        self._name = name
        self._output = output
        self._metrics = metrics
        self._lock = threading.Lock()
        self._waiting: list[dict[str, Any]] = []
        logs.create_log_stream(logGroupName=group, logStreamName=name)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for raw in self._output:
            line, moment = raw.decode("utf-8", "replace").rstrip("\r\n"), time.time()
            self._metrics.read(line, moment)
            pieces = [line[start : start + _EVENT_CHARACTERS] for start in range(0, len(line), _EVENT_CHARACTERS)]
            with self._lock:  # no event for an empty line: CloudWatch rejects empty messages
                self._waiting += [{"timestamp": int(moment * 1000), "message": piece} for piece in pieces]

    def send(self) -> None:
        """Send the lines read since the last call."""
        with self._lock:
            events, self._waiting = self._waiting, []
        for batch in _batches(events):
            self._logs.put_log_events(logGroupName=self._group, logStreamName=self._name, logEvents=batch)

    def close(self) -> None:
        """Send the rest, after the container's processes have ended."""
        self._reader.join(5)  # a process that left the container's group may hold the pipe open forever
        self.send()


def _batches(events: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for event in events:
        if batch and (size + len(event["message"]) > _CALL_CHARACTERS or len(batch) >= _CALL_EVENTS):
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += len(event["message"])
    if batch:
        yield batch
