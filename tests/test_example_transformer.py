"""examples/transformer: its kernels against plain JAX, and that it runs."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pools
import pytest

import jax_bfc

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

EXAMPLE = Path(__file__).parent.parent / "examples" / "transformer"
sys.path.insert(0, str(EXAMPLE))

from bytelm import build, checks, data, model, reference  # noqa: E402
from bytelm.kernels import SOURCES, Kernels, Source  # noqa: E402
from bytelm.ops import Ops, custom_ops  # noqa: E402
from transformer_checks import (  # noqa: E402
    assert_all_pass,
    assert_one_token_at_a_time_is_the_same,
    assert_samples_continue_their_prompt,
)


@pytest.fixture(scope="module")
def build_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transformer_kernels")
    build.build(folder)
    return folder


@pytest.fixture(scope="module")
def kernels(build_folder: Path) -> Kernels:
    return Kernels(build.build(build_folder))


@pytest.fixture(scope="module")
def all_ops(kernels: Kernels) -> list[Ops]:
    return [custom_ops(kernels, source) for source in SOURCES]


def run(
    program: str | Path, *arguments: object, timeout: float = 300, **environment: str
) -> str:
    """Runs a script, or the text of one, in a process of its own."""
    start = [str(program)] if isinstance(program, Path) else ["-c", program]
    return pools.run(
        sys.executable,
        *start,
        *arguments,
        env={"PYTHONPATH": str(EXAMPLE)} | environment,
        cwd=EXAMPLE,
        timeout=timeout,
    )


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 64, 2, 16), (1, 65, 3, 40), (3, 200, 1, 8)]
)
def test_attention_and_its_gradient_agree_with_plain_jax(
    all_ops: list[Ops], shape: tuple[int, ...]
) -> None:
    assert_all_pass(checks.check_attention(all_ops, shape))


@pytest.mark.parametrize("sizes", [(1, 1, 2), (64, 16, 16), (70, 33, 100)])
def test_cross_entropy_and_its_gradient_agree_with_plain_jax(
    all_ops: list[Ops], sizes: tuple[int, int, int]
) -> None:
    assert_all_pass(checks.check_cross_entropy(all_ops, *sizes))


@pytest.mark.parametrize("sizes", [(1, 1, 16), (8, 64, 16), (70, 131, 45)])
def test_int8_matmul_agrees_with_the_same_quantisation_in_plain_jax(
    all_ops: list[Ops], sizes: tuple[int, int, int]
) -> None:
    quantised = [
        check
        for check in checks.check_int8_matmul(all_ops, *sizes)
        if check.result == "as quantised"
    ]
    assert_all_pass(quantised)


@pytest.mark.parametrize("sizes", [(1, 1), (9, 5), (64, 300)])
def test_sampling_picks_the_tokens_that_plain_jax_picks(
    all_ops: list[Ops], sizes: tuple[int, int]
) -> None:
    assert_all_pass(checks.check_sample(all_ops, *sizes))


def test_the_gradient_of_the_whole_model_agrees_with_plain_jax(
    all_ops: list[Ops],
) -> None:
    assert_all_pass(checks.check_model(all_ops, 2, 33))


def test_attention_is_as_close_to_double_precision_as_plain_jax(
    all_ops: list[Ops],
) -> None:
    q, k, v = checks.normal(7, 3, 2, 150, 2, 32)
    with jax.enable_x64(True):
        exact = np.asarray(
            reference.attention(*(jnp.asarray(x, jnp.float64) for x in (q, k, v)))
        )
    assert exact.dtype == np.float64
    plain = np.abs(np.asarray(reference.attention(q, k, v)) - exact).max()
    for ops in all_ops:
        ours = np.abs(np.asarray(ops.attention(q, k, v)) - exact).max()
        assert ours < 4 * plain


def test_the_bits_do_not_depend_on_the_number_of_threads(kernels: Kernels) -> None:
    q, k, v, weight = checks.normal(3, 4, 2, 150, 2, 16)
    hidden, head = checks.normal(4, 300, 24), checks.normal(5, 24, 50)
    labels = jnp.arange(300, dtype=jnp.int32) % 50
    wanted = kernels.max_threads
    results = []
    try:
        for threads in (1, 4):
            kernels.max_threads = threads
            ops = custom_ops(kernels, "malloc")

            def loss(hidden: jax.Array, head: jax.Array, ops: Ops = ops) -> jax.Array:
                return ops.cross_entropy(hidden, head, labels)

            ones = np.ones(300, np.float32)
            results.append(
                checks.with_gradient(ops.attention, weight, (0, 1, 2), q, k, v)
                + checks.with_gradient(loss, ones, (0, 1), hidden, head)
            )
    finally:
        kernels.max_threads = wanted
    for one, four in zip(*results, strict=True):
        np.testing.assert_array_equal(one, four)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_kernels_for_older_processors_agree_too(build_folder: Path, isa: str) -> None:
    program = """
import sys
from pathlib import Path
from bytelm import build, checks
from bytelm.kernels import Kernels
from bytelm.ops import custom_ops

kernels = Kernels(build.build(Path(sys.argv[1])))
ops = [custom_ops(kernels, "bfc")]
results = [
    *checks.check_attention(ops, (1, 70, 2, 24)),
    *checks.check_cross_entropy(ops, 70, 20, 40),
    *checks.check_int8_matmul(ops, 19, 50, 37),
]
assert all(check.passed for check in results), results
print(kernels.isa)
"""
    # Where the processor has no avx2, the library falls back to the baseline.
    used = run(program, build_folder, TRANSFORMER_ISA=isa).strip()
    assert used in {isa, "baseline"}


# Each of 16 threads is in a handler that wants help from the pool's few threads,
# and runs on one of them where XLA puts it there.
CALLERS = """
import os, sys
if sys.argv[2] == "one core":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import jax
import numpy as np
from bytelm import build, checks, model
from bytelm.kernels import SOURCES, Kernels
from bytelm.ops import PLAIN, custom_ops

kernels = Kernels(build.build(Path(sys.argv[1])))
# More than the pool has, so that every call asks for all of its threads.
kernels.max_threads = 64
config = model.Config(width=32, heads=4, layers=2)
params = model.init(config)
random = np.random.default_rng(0)
tokens = jax.numpy.asarray(random.integers(0, 256, (2, 131), np.int32))

def gradient(ops):
    return jax.jit(jax.grad(lambda p: model.loss(p, tokens, config, ops)))

expected = jax.tree.leaves(gradient(PLAIN)(params))
functions = [gradient(custom_ops(kernels, source)) for source in SOURCES]

def call(i):
    worst = 0.0
    for turn in range(5):
        actual = jax.tree.leaves(functions[(i + turn) % len(functions)](params))
        errors = [checks.relative_error(a, b) for a, b in zip(actual, expected)]
        worst = max(worst, *errors)
    return worst

with ThreadPoolExecutor(16) as pool:
    print(max(pool.map(call, range(32))) < 1e-4)
"""


@pytest.mark.parametrize("cores", ["all cores", "one core"])
def test_more_callers_than_threads_all_finish(build_folder: Path, cores: str) -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs sched_setaffinity")
    # A deadlock would be found by the timeout of run().
    assert run(CALLERS, build_folder, cores).strip() == "True"


def test_sampled_text_continues_its_prompt(all_ops: list[Ops]) -> None:
    config = model.Config(width=32, heads=2, layers=1)
    assert_samples_continue_their_prompt(all_ops, config)


def test_a_token_at_a_time_is_the_same_text(all_ops: list[Ops]) -> None:
    config = model.Config(width=32, heads=2, layers=1)
    assert_one_token_at_a_time_is_the_same(all_ops[0], config)


def test_scratch_is_charged_to_the_kernel_and_given_back(all_ops: list[Ops]) -> None:
    bfc = all_ops[0]
    name = "transformer.sample.bfc"
    before = jax_bfc.kernel_stats().get(name, SimpleNamespace(calls=0)).calls
    tokens = bfc.sample(jnp.zeros((4, 8)), jnp.full(4, 0.5), 1.0, 0, 1.0)
    tokens.block_until_ready()
    stats = jax_bfc.kernel_stats()[name]
    assert stats.calls == before + 1
    assert stats.bytes_in_use == 0


@pytest.mark.parametrize("source", SOURCES)
def test_a_label_outside_the_vocabulary_is_an_error(
    kernels: Kernels, source: Source
) -> None:
    ops = custom_ops(kernels, source)
    labels = jnp.array([0, 9], jnp.int32)
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=r"label 9 of row 1 .*\[0, 5\)"
    ):
        ops.cross_entropy(jnp.ones((2, 3)), jnp.ones((3, 5)), labels)


def test_shapes_that_do_not_fit_are_errors(kernels: Kernels) -> None:
    def call(operation: str, operands: list[jax.Array], *shape: int) -> jax.Array:
        result = jax.ShapeDtypeStruct(shape, jnp.float32)
        return kernels.call(operation, "malloc", operands, [result], (), "sequential")[
            0
        ]

    error = jax.errors.JaxRuntimeError
    with pytest.raises(error, match="the same depth"):
        call("int8_matmul", [jnp.ones((2, 3)), jnp.ones((4, 5))], 2, 5)
    with pytest.raises(error, match=r"y must be \(rows, columns\)"):
        call("int8_matmul", [jnp.ones((2, 3)), jnp.ones((3, 5))], 2, 6)
    ops = custom_ops(kernels, "malloc")
    with pytest.raises(error, match=r"q \(4, 2, 8\) and .* \(5, 2, 8\) differ"):
        ops.attention(jnp.ones((4, 2, 8)), jnp.ones((5, 2, 8)), jnp.ones((4, 2, 8)))
    with pytest.raises(error, match="temperature and top_p must be positive"):
        ops.sample(jnp.ones((1, 4)), jnp.ones(1), 0.0, 0, 1.0)


def test_a_build_that_fails_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(build.BuildError, match=r"(?s)needs a C\+\+17 compiler.*log"):
        build.build(tmp_path)
    assert not list(tmp_path.rglob("*.so"))


def test_kernels_are_built_once(
    build_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(build, "run", fail)
    assert build.build(build_folder).exists()


def test_the_corpus_is_python() -> None:
    text = data.corpus(1 << 17).tobytes()
    assert len(text) == 1 << 17
    assert b"import " in text


def test_the_quick_benchmark_prints_its_tables(
    build_folder: Path, tmp_path: Path
) -> None:
    plot = tmp_path / "plot.png"
    out = run(
        EXAMPLE / "benchmark.py",
        *("--quick", "--train-seconds", 1, "--measure-seconds", 0.3),
        *("--build-folder", build_folder, "--output", plot),
    )
    assert plot.read_bytes().startswith(b"\x89PNG")
    for text in (
        "Kernels against plain JAX",
        "ratio to malloc",
        "train 8x64",
        "sample 4x64",
        "jax_bfc.memory_stats()",
        "transformer.attention_backward.bfc",
    ):
        assert text in out
    for source in ("jax_bfc", "malloc in handler", "extra XLA output", "plain JAX"):
        assert out.count(f"│ {source} ") == 3
    assert "FAILED" not in out
