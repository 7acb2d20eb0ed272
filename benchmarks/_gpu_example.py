"""The decode loop of examples/transformer, a token at a time, for graphs.py."""

from __future__ import annotations

import functools
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _gpu_measure import Cell, Results, Row
from _measure import Case

_EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "transformer"
_BATCH = 8
_PROMPT = 16
_LENGTH = 128
NAME = "the example's decoding, a token"


class DecodeLoop:
    """The same tokens from each source; a sample makes all of them."""

    def __init__(self) -> None:
        """Builds the example. Not before the environment is set."""
        import jax
        import jax.numpy as jnp

        sys.path.insert(0, str(_EXAMPLE))
        build: Any = importlib.import_module("bytelm.build")
        cuda_kernels: Any = importlib.import_module("bytelm.cuda_kernels")
        self._model: Any = importlib.import_module("bytelm.model")
        self._ops: Any = importlib.import_module("bytelm.ops")
        self._jax: Any = jax
        self._kernels = cuda_kernels.CudaKernels(build.build(None, build.CUDA))
        self._config = self._model.Config(
            width=1024, heads=16, layers=3, vocabulary=32_000, dtype="bfloat16"
        )
        self._params = self._model.cast(self._model.init(self._config), self._config)
        key = jax.random.key(0)
        shape = (_BATCH, _PROMPT)
        self._prompt = jax.random.randint(key, shape, 0, 32_000, jnp.int32)
        self._uniform = jax.random.uniform(key, (_LENGTH, _BATCH))
        self._steps: dict[str, Callable[[Any, Any, Any], Any]] = {}
        self._expected: Any = None

    def add(self, label: str, source: str, results: Results) -> None:
        """Compiles it; checks its tokens, and that it runs in a graph or does not."""
        import numpy as np

        step = self._jax.jit(
            functools.partial(
                self._model.decode,
                config=self._config,
                ops=self._ops.custom_ops(self._kernels, source),
                given=_PROMPT,
                sampling=self._model.Sampling(),
            ),
            donate_argnums=1,
        )
        try:
            tokens = np.asarray(self._run(step, self._start()))
            if self._expected is None:
                self._expected = tokens
            np.testing.assert_array_equal(tokens, self._expected)
            self._check_calls(step, source)
        except Exception as error:
            results.fail(f"{label}, {NAME}", error)
            return
        self._steps[label] = step

    def _start(self) -> Any:
        state = self._model.start_decoding(self._prompt, self._config, _LENGTH)
        return self._jax.block_until_ready(state)

    def _run(self, step: Callable[[Any, Any, Any], Any], state: Any) -> Any:
        for _ in range(_LENGTH - 1):
            state = step(self._params, state, self._uniform)
        return state[0].block_until_ready()

    def _check_calls(self, step: Callable[[Any, Any, Any], Any], source: str) -> None:
        """Of the sources whose handlers are counted, those of jax_bfc."""
        if not source.startswith("bfc"):
            return
        import jax_bfc

        kernel = f"transformer.int8_matmul.{source}"
        before = jax_bfc.kernel_stats()[kernel].calls
        self._run(step, self._start())
        called = jax_bfc.kernel_stats()[kernel].calls - before
        tokens = _LENGTH - 1
        # Some, where buffers have moved.
        if called != tokens if source == "bfc" else called > tokens // 5:
            raise RuntimeError(
                f"{called} handler calls for {tokens} tokens: it does not run as its "
                "name says"
            )

    def _sample(self, step: Callable[[Any, Any, Any], Any]) -> list[float]:
        """ns of a token, the mean over all of them."""
        state = self._start()
        begin = time.perf_counter_ns()
        self._run(step, state)
        return [(time.perf_counter_ns() - begin) / (_LENGTH - 1)]

    def cells(self) -> list[Cell]:
        return [
            (
                Row(case=Case(workload=NAME), side=label, ns_by_round=[]),
                functools.partial(self._sample, step),
            )
            for label, step in self._steps.items()
        ]
