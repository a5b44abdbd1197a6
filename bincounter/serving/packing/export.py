"""Exports of a checkpoint: one file that maps ``uint8[B, 3, S, S]`` to distributions over counts, ``float32[B, K]``.

Normalisation and the objective's distribution are inside; decoding and resizing to the square of S pixels stay outside,
as :mod:`bincounter.data.preprocessing` does them. The counts, S, and which count to answer if it is not the most likely
one, are in the file's metadata.
"""

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bincounter.errors import UserError, check_extra, first_line
from bincounter.model.counter import BinCounter
from bincounter.serving.application.engines import ONNX_FILE, PIXELS, PROBABILITIES, open_model
from bincounter.serving.application.served_model import Network

EXPORTER = ("onnx", "onnxscript", "onnxruntime")
_METADATA = "bincounter"
_QUANTIZED = ["Conv", "Relu", "Clip", "MaxPool", "Add"]  # what lies between convolutions is computed on 8 bits, too
_BATCH = 8  # photos
_ADVICE = "use engine=torch, or bincounter export --to torchscript"


class ExportError(UserError):
    """A backbone that cannot be exported."""


def network_of(counter: BinCounter, description: Mapping[str, Any]) -> Network:
    """Network of a checkpoint that :func:`bincounter.model.build.load_counter` has loaded."""
    node = description["model"]
    options = {"channels_last": node.get("channels_last", True), "average_flips": node.get("average_flips", False)}
    return Network(counter.backbone, counter.head, counter.objective, **options)


def to_onnx(network: Network, description: Mapping[str, Any]) -> bytes:
    """Export a network to ONNX, for batches of any size; the same bytes for the same network and versions.

    Args:
        network: on the CPU.
        description: of the checkpoint; its counts and image size become metadata.

    Raises:
        ConfigError: the exporter is not installed.
        ExportError: the backbone cannot be exported.
    """
    check_extra(*EXPORTER, extra="onnx", wanted="The export to ONNX")
    import onnx

    batch = {0: torch.export.Dim("batch")}
    with _quiet(), tempfile.TemporaryDirectory(prefix="bincounter-export-") as folder:
        path = Path(folder) / ONNX_FILE
        try:
            torch.onnx.export(
                network,
                (_example(description),),
                path,
                input_names=[PIXELS],
                output_names=[PROBABILITIES],
                dynamic_shapes=(batch,),
                external_data=False,
                dynamo=True,
            )
        except Exception as error:  # the exporter raises almost anything on a module that it cannot trace
            name = type(network.backbone).__name__
            raise ExportError(
                f"The backbone {name} cannot be exported to ONNX ({_reason(error)}): {_ADVICE}"
            ) from error
        model = onnx.load(path)
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ExportError(
            "The model cannot be exported to ONNX (its code fixes the number of photos of a batch, such as by "
            "len(tensor)): write tensor.shape[0] there, or use engine=torch"
        )
    # Traces of source lines, which name folders of this machine.
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]
    onnx.helper.set_model_props(model, {_METADATA: _metadata(description)})
    return model.SerializeToString(deterministic=True)


def quantized(model: bytes, photos: np.ndarray) -> bytes:
    """Quantise the convolutions of an ONNX model to int8, with static ranges.

    Weights have a scale per channel and 7 bits: on CPUs without VNNI a product of 8 bits can overflow, and the answers
    would depend on the CPU. The head and the objective stay in fp32.

    Args:
        model: of :func:`to_onnx`.
        photos: ``uint8[N, 3, S, S]``, from which the ranges of activations are taken.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Photos(CalibrationDataReader):
        """Batches of the photos."""

        def __init__(self) -> None:
            self._batches = iter(np.array_split(photos, -(-len(photos) // _BATCH)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {PIXELS: batch}

    exported = onnx.load_from_string(model)
    precise, of_head = list[str](), set[str]()  # nodes from the head on; their outputs
    for node in exported.graph.node:  # in the order of computation
        if any(name.startswith("head.") or name in of_head for name in node.input):
            precise.append(node.name)
            of_head.update(node.output)
    with _quiet(), tempfile.TemporaryDirectory(prefix="bincounter-int8-") as folder:
        path = Path(folder) / ONNX_FILE
        quantize_static(
            exported,
            path,
            Photos(),
            nodes_to_exclude=precise,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_QUANTIZED,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return path.read_bytes()


def write_export(network: Network, description: Mapping[str, Any], kind: str, path: Path) -> Callable[[Tensor], Tensor]:
    """Export a network to a file.

    Args:
        network: on the CPU.
        description: of the checkpoint.
        kind: ``onnx``, ``openvino`` (its weights are in a ``.bin`` beside the file) or ``torchscript``.
        path: of the file.

    Returns:
        The exported function, read back from the file and run by its own runtime.

    Raises:
        ConfigError: an optional package is not installed.
        ExportError: the backbone cannot be exported.
    """
    if kind == "torchscript":
        try:
            with _quiet():
                traced = torch.jit.trace(network, _example(description))
        except Exception as error:  # as above
            name = type(network.backbone).__name__
            raise ExportError(
                f"The backbone {name} cannot be exported to TorchScript ({_reason(error)}): use another backbone"
            ) from error
        with _quiet():
            traced.save(str(path), _extra_files={_METADATA: _metadata(description)})
            return torch.jit.load(str(path))
    if kind == "openvino":
        check_extra("openvino", extra="openvino", wanted="The export to OpenVINO")
    content = to_onnx(network, description)
    if kind == "onnx":
        path.write_bytes(content)
        return open_model("onnxruntime", path)
    import openvino

    model = openvino.Core().read_model(content)
    model.set_rt_info(_metadata(description), _METADATA)
    openvino.save_model(model, path, compress_to_fp16=False)
    return open_model("openvino", path)


def _example(description: Mapping[str, Any]) -> Tensor:
    """Two photos: the exporter takes a size of 1 for a constant."""
    size = description["image_size"]
    return torch.zeros(2, 3, size, size, dtype=torch.uint8)


def _metadata(description: Mapping[str, Any]) -> str:
    known = {"counts": list(description["counts"]), "image_size": description["image_size"]}
    if (answer := description["model"].get("answer", "mode")) != "mode":  # which exports of earlier versions do not say
        known["answer"] = answer
    return json.dumps(known)


def _reason(error: Exception) -> str:
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return first_line(error)[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporters print, log and warn of."""
    disabled = logging.root.manager.disable
    said = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            yield
        finally:
            logging.disable(disabled)
