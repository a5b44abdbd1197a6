"""Data capture: what endpoints were asked and answered, as JSON lines in S3."""

import base64
import json
import random
import time
import uuid
from typing import Any

from bincounter.cloud.rehearsal.endpoints.endpoint import Endpoint
from bincounter.cloud.rehearsal.site import Site
from bincounter.cloud.rehearsal.storage import joined, split_uri

_SIDES = {"Input": "endpointInput", "Output": "endpointOutput"}


def capture(site: Site, endpoint: Endpoint, asked: tuple[str, bytes], answered: tuple[str, bytes]) -> None:
    """Keep one request and its answer, if the endpoint's configuration wants that.

    Args:
        site: whose S3 it goes to.
        endpoint: that was asked.
        asked: content type and body.
        answered: content type and body.
    """
    config = endpoint.config.get("DataCaptureConfig", {})
    if not config.get("EnableCapture") or random.random() * 100 >= config["InitialSamplingPercentage"]:
        return
    modes = [option["CaptureMode"] for option in config["CaptureOptions"]]
    wanted = {"Input", "Output"} if "InputAndOutput" in modes else set(modes)
    sides = {"Input": asked, "Output": answered}
    number, moment = str(uuid.uuid4()), time.gmtime()
    line = {
        "captureData": {_SIDES[side]: _side(side, *sides[side]) for side in sorted(wanted)},
        "eventMetadata": {"eventId": number, "inferenceTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)},
        "eventVersion": "0",
    }
    folder = time.strftime("%Y/%m/%d/%H", moment)
    name = f"{time.strftime('%M-%S', moment)}-{number}.jsonl"
    uri = joined(config["DestinationS3Uri"], endpoint.name, endpoint.variant["VariantName"], folder, name)
    bucket, key = split_uri(uri)
    site.s3.put_object(Bucket=bucket, Key=key, Body=json.dumps(line).encode() + b"\n")


def _side(side: str, content_type: str, body: bytes) -> dict[str, Any]:
    kind = content_type.partition(";")[0]
    plain = {"application/json": "JSON", "text/csv": "CSV"}.get(kind)
    data = body.decode("utf-8", "replace") if plain else base64.b64encode(body).decode()
    return {
        "observedContentType": content_type,
        "mode": side.upper(),
        "data": data,
        "encoding": plain or "BASE64",
    }
