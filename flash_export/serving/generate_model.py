"""What Triton's Python backend runs of the form ``generate``; imported in the server alone."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from flash_export.generation.batcher import Batcher
from flash_export.generation.generate import Generator
from flash_export.generation.sampling import SamplingOptions
from flash_export.models.token_model import TOKENS as INPUT_IDS
from flash_export.serving.generate import END, END_CODES, MAX_WAITING, SLOTS, TIMEOUT_S, TOKENS
from flash_export.serving.python_model import BACKEND, open_bundle, read_settings, read_threads
from flash_export.serving.service import COUNTED, Service
from flash_export.serving.tensors import make_tensor, read_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flash_export.generation.batcher import End

RUNNING, WAITING = "running", "waiting"
_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """Hands requests to a service, which answers them from a thread of its own."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the graphs, run each once, and start the thread."""
        settings = read_settings(args)
        self._generator = Generator.open(open_bundle(args), settings[BACKEND], threads=read_threads(settings))
        self._generator.__enter__()
        for size in (self._generator.runners.chunk_size + 1, 2):  # for prefill and for extend; decode goes on from both
            self._generator.generate([np.zeros(size, np.int64)], SamplingOptions(max_tokens=1))
        self._service = Service(
            lambda: Batcher(self._generator, int(settings[SLOTS])),
            max_waiting=int(settings[MAX_WAITING]),
            timeout_s=float(settings[TIMEOUT_S]),
            on_poll=_Metrics(args["model_name"], args["model_version"]),
        )
        self._thread = threading.Thread(target=self._service.run, name="flash-export")
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Take requests; the replies come later."""
        for request in requests:
            self._service.submit(_Call(request))

    def finalize(self) -> None:
        """End the thread and free the graphs."""
        self._service.close()
        self._thread.join()
        self._generator.__exit__(None, None, None)


class _Call:
    """A request, and the stream of its replies."""

    def __init__(self, request: Any) -> None:
        """Copy what the request has: its memory is the server's."""
        self._sender = request.get_response_sender()
        self.prompt = read_tensor(request, INPUT_IDS)
        self.parameters: dict[str, object] = json.loads(request.parameters() or "{}")

    def is_cancelled(self) -> bool:
        """Tell whether the client has gone or does not want the answer."""
        return bool(self._sender.is_cancelled())

    def send(self, tokens: list[int], end: End | None) -> None:
        """Send a reply."""
        reply = [
            make_tensor(TOKENS, np.array(tokens, np.int64)),
            make_tensor(END, np.array([END_CODES[end]], np.int32)),
        ]
        self._sender.send(pb_utils.InferenceResponse(reply), flags=_FINAL if end else 0)

    def fail(self, message: str) -> None:
        """Send an error, which ends the stream."""
        self._sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(message)), flags=_FINAL)


class _Metrics:
    """Shows what a service counts among the server's metrics."""

    def __init__(self, model: str, version: str) -> None:
        """Make a metric for each figure; several instances of a model share them, and so add to them."""
        labels = {"model": model, "version": version}
        self._families: list[Any] = []
        self._metrics = {name: self._make(f"flash_export_{name}_total", "COUNTER", labels) for name in COUNTED}
        for name in (RUNNING, WAITING):
            self._metrics[name] = self._make(f"flash_export_{name}", "GAUGE", labels)
        self._shown = dict.fromkeys(self._metrics, 0)

    def __call__(self, service: Service) -> None:
        """Bring the metrics up to date."""
        now = {**service.counts, RUNNING: service.num_running, WAITING: service.num_waiting}
        for name, metric in self._metrics.items():
            if now[name] != self._shown[name]:
                metric.increment(now[name] - self._shown[name])
        self._shown = now

    def _make(self, name: str, kind: str, labels: dict[str, str]) -> Any:
        family = pb_utils.MetricFamily(name, name.replace("_", " "), getattr(pb_utils.MetricFamily, kind))
        self._families.append(family)  # a metric does not keep its family alive
        return family.Metric(labels=labels)
