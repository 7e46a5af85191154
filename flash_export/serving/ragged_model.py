"""What Triton's Python backend runs of the form ``ragged``; imported in the server alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from flash_export.config import FORWARD
from flash_export.errors import FlashExportError
from flash_export.runtime.backends import BACKENDS
from flash_export.serving.python_model import BACKEND, open_bundle, read_settings, read_threads
from flash_export.serving.ragged import check_request, group_requests, join_requests, make_example, split_outputs
from flash_export.serving.tensors import make_tensor, read_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np


class TritonPythonModel:
    """Answers the requests of a batch in as few runs as their lengths allow."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the graph, and run it once."""
        settings, bundle = read_settings(args), open_bundle(args)
        (target,) = BACKENDS[settings[BACKEND]].find(bundle, FORWARD)
        self._graph, self._interface = bundle.get_graph(), bundle.manifest.interface
        self._runner = target.open(threads=read_threads(settings), rounds=False)
        self._runner.__enter__()
        self._run([make_example(self._graph, self._interface)])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; a wrong one is refused alone."""
        arrays = [self._read(request) for request in requests]
        responses = [self._check(one) for one in arrays]
        good = [index for index, response in enumerate(responses) if response is None]
        for group in group_requests(self._interface, [arrays[index] for index in good]):
            indices = [good[index] for index in group]
            for index, answer in zip(indices, self._run([arrays[index] for index in indices]), strict=True):
                responses[index] = answer
        return responses

    def finalize(self) -> None:
        """Free the graph."""
        self._runner.__exit__(None, None, None)

    def _read(self, request: Any) -> dict[str, np.ndarray]:
        return {spec.name: read_tensor(request, spec.name) for spec in self._interface.inputs}

    def _check(self, arrays: dict[str, np.ndarray]) -> Any:
        """Return the refusal of a request; None: it can be answered."""
        try:
            check_request(self._graph, self._interface, arrays)
        except FlashExportError as error:
            return _refuse(error)
        return None

    def _run(self, arrays: list[dict[str, np.ndarray]]) -> list[Any]:
        try:
            outputs = self._runner.run(join_requests(self._interface, arrays).to_inputs(self._graph.inputs))
        except FlashExportError as error:
            return [_refuse(error)] * len(arrays)
        return [
            pb_utils.InferenceResponse([make_tensor(name, values) for name, values in answer.items()])
            for answer in split_outputs(self._interface, arrays, outputs)
        ]


def _refuse(error: FlashExportError) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
