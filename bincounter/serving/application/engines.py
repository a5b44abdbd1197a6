"""Engines that compute ``model.onnx`` on a CPU instead of torch: ONNX Runtime and OpenVINO."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bincounter.parallel import count_threads

TORCH = "torch"
ONNX_FILE = "model.onnx"
PIXELS, PROBABILITIES = "pixels", "probabilities"
"""Names of the input ``uint8[B, 3, S, S]`` and of the output ``float32[B, K]``."""


def open_model(engine: str, path: Path) -> Callable[[Tensor], Tensor]:
    """Open an ONNX model.

    Args:
        engine: ``onnxruntime`` or ``openvino``.
        path: of the file; OpenVINO also opens its own ``.xml``.

    Returns:
        ``uint8[B, 3, S, S]`` -> ``float32[B, K]``, for one thread at a time.

    Raises:
        ModuleNotFoundError: the engine is not installed; the engines raise errors of their own on a broken file.
    """
    return {"onnxruntime": _open_onnxruntime, "openvino": _open_openvino}[engine](path)


def _open_onnxruntime(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_threads()
    # Its threads would wait in a loop for the next batch, on cores that decode photos meanwhile.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(photos: Tensor) -> Tensor:
        return torch.from_numpy(session.run([PROBABILITIES], {PIXELS: photos.numpy()})[0])

    return forward


def _open_openvino(path: Path) -> Callable[[Tensor], Tensor]:
    import openvino

    properties = {
        "INFERENCE_NUM_THREADS": count_threads(),
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the CPU multiplies it
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
    }
    request = openvino.Core().compile_model(path, "CPU", properties).create_infer_request()

    def forward(photos: Tensor) -> Tensor:
        return torch.from_numpy(request.infer({PIXELS: photos.numpy()}, share_inputs=True)[PROBABILITIES].copy())

    return forward
