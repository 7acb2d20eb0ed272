"""examples/transformer on a CUDA GPU: its kernels against plain JAX."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pools import run

import jax_bfc

pytest.importorskip("rich")
pytest.importorskip("matplotlib")
if jax.default_backend() != "gpu":
    pytest.skip(
        f"needs a GPU: jax.default_backend() is {jax.default_backend()!r}",
        allow_module_level=True,
    )

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "transformer"
sys.path.insert(0, str(EXAMPLE))

from bytelm import build, checks, data, model  # noqa: E402
from bytelm.checks import BFLOAT16, GPU_FLOAT32, Precision  # noqa: E402
from bytelm.cuda_kernels import CudaKernels  # noqa: E402
from bytelm.ops import Ops, custom_ops  # noqa: E402
from transformer_checks import (  # noqa: E402
    assert_all_pass,
    assert_one_token_at_a_time_is_the_same,
    assert_samples_continue_their_prompt,
)

SOURCES = tuple(CudaKernels.sources)
both_precisions = pytest.mark.parametrize(
    "precision", [GPU_FLOAT32, BFLOAT16], ids=lambda precision: precision.dtype
)
all_sources = pytest.mark.parametrize("source", SOURCES)


@pytest.fixture(scope="module")
def kernels() -> CudaKernels:
    return CudaKernels(build.build(None, build.CUDA))


@pytest.fixture(scope="module")
def bfc(kernels: CudaKernels) -> list[Ops]:
    return [custom_ops(kernels, "bfc")]


@pytest.fixture(scope="module")
def all_ops(kernels: CudaKernels) -> list[Ops]:
    return [custom_ops(kernels, source) for source in SOURCES]


@both_precisions
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (1, 16, 1, 16),  # one warp's rows
        (1, 64, 1, 32),  # one tile
        (2, 64, 2, 64),
        (1, 64, 1, 128),
        (1, 65, 3, 40),  # a padded dimension
        (3, 200, 2, 8),
        (1, 100, 2, 7),  # rows that are not aligned
        (1, 129, 2, 72),
        (2, 300, 2, 128),  # splits
        (1, 1100, 2, 64),
        (4, 1030, 20, 24),  # so many heads that splits are long
    ],
    ids=str,
)
def test_attention_and_its_gradient(
    bfc: list[Ops], shape: tuple[int, ...], precision: Precision
) -> None:
    assert_all_pass(checks.check_attention(bfc, shape, precision=precision))


@both_precisions
@pytest.mark.parametrize(
    ("shape", "positions"),
    [
        ((1, 1, 1, 1), [0]),
        ((2, 128, 2, 64), [0, 1, 127]),
        ((3, 300, 2, 24), [5, 128, 255, 299]),
        ((1, 200, 3, 7), [0, 150]),
        ((2, 1000, 4, 128), [0, 500, 999]),
    ],
    ids=str,
)
def test_decoding(
    bfc: list[Ops],
    shape: tuple[int, ...],
    positions: list[int],
    precision: Precision,
) -> None:
    assert_all_pass(checks.check_decode(bfc, shape, positions, precision=precision))


@both_precisions
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 2),
        (64, 16, 16),
        (70, 33, 101),
        (33, 128, 32_000),
        (4500, 16, 32_000),  # so many logits that they are done in pieces
    ],
    ids=str,
)
def test_cross_entropy_and_its_gradient(
    bfc: list[Ops], sizes: tuple[int, int, int], precision: Precision
) -> None:
    assert_all_pass(checks.check_cross_entropy(bfc, *sizes, precision=precision))


def test_a_label_outside_the_vocabulary_gives_no_number(bfc: list[Ops]) -> None:
    hidden, head = jnp.ones((3, 8)), jnp.ones((8, 5))
    labels = jnp.array([4, 9, -1], jnp.int32)
    loss = bfc[0].cross_entropy(hidden, head, labels)
    np.testing.assert_array_equal(jnp.isnan(loss), [False, True, True])


@both_precisions
@pytest.mark.parametrize(
    "sizes", [(1, 1, 16), (8, 64, 16), (70, 131, 45), (40, 256, 1000)], ids=str
)
def test_int8_matmul(
    bfc: list[Ops], sizes: tuple[int, int, int], precision: Precision
) -> None:
    results = checks.check_int8_matmul(bfc, *sizes, precision=precision)
    assert_all_pass(check for check in results if check.result == "as quantised")


@pytest.mark.parametrize("sizes", [(1, 1), (9, 5), (64, 300), (3, 32_000)], ids=str)
def test_sampling_picks_the_tokens_that_plain_jax_picks(
    bfc: list[Ops], sizes: tuple[int, int]
) -> None:
    assert_all_pass(checks.check_sample(bfc, *sizes))


def test_of_equal_logits_the_first_token_is_chosen_first(bfc: list[Ops]) -> None:
    logits = jnp.array([[0.0, 2.0, -0.0, 2.0, jnp.nan]])
    tokens = [
        int(bfc[0].sample(logits, jnp.array([u]), 1.0, 3, 1.0)[0])
        for u in (0.0, 0.5, 0.99)
    ]
    assert tokens == [1, 3, 0]


@both_precisions
def test_the_gradient_of_the_whole_model(bfc: list[Ops], precision: Precision) -> None:
    assert_all_pass(checks.check_model(bfc, 2, 70, precision=precision))


@both_precisions
@all_sources
def test_every_source_of_scratch(
    kernels: CudaKernels, source: str, precision: Precision
) -> None:
    ops = [custom_ops(kernels, source)]
    assert_all_pass(
        [
            *checks.check_attention(ops, (2, 300, 2, 32), precision=precision),
            *checks.check_decode(ops, (2, 300, 2, 32), [299], precision=precision),
            *checks.check_cross_entropy(ops, 70, 32, 1000, precision=precision),
            *checks.check_int8_matmul(ops, 20, 300, 70, precision=precision),
            *checks.check_sample(ops, 16, 300),
        ]
    )


def test_the_bits_are_the_same_every_time(all_ops: list[Ops]) -> None:
    operands = [checks.rounded(x, BFLOAT16) for x in checks.normal(0, 4, 2, 700, 2, 64)]

    def results(ops: Ops) -> list[jax.Array]:
        return checks.with_gradient(
            ops.attention, operands[0], (0, 1, 2), *operands[1:]
        )

    expected = results(all_ops[0])
    for ops in all_ops * 2:
        for one, other in zip(expected, results(ops), strict=True):
            np.testing.assert_array_equal(
                np.asarray(one, np.float32), np.asarray(other, np.float32), ops.name
            )


def test_attention_is_close_to_double_precision(bfc: list[Ops]) -> None:
    q, k, v = checks.normal(7, 3, 2, 150, 2, 32)
    # By NumPy: XLA has no float64 product on a GPU where it tunes none.
    q64, k64, v64 = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bthd,bshd->bhts", q64, k64) / np.sqrt(q64.shape[-1])
    visible = np.tril(np.ones(scores.shape[-2:], bool))
    weights = np.exp(np.where(visible, scores, -np.inf) - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    exact = np.einsum("bhts,bshd->bthd", weights, v64)
    ours = np.asarray(bfc[0].attention(q, k, v))
    assert np.abs(ours - exact).max() < 1e-5 * np.abs(exact).max()


def test_sampled_text_continues_its_prompt(all_ops: list[Ops]) -> None:
    config = model.Config(width=64, heads=2, layers=2, dtype="bfloat16")
    assert_samples_continue_their_prompt(all_ops, config)


@pytest.mark.parametrize("source", ["bfc", *CudaKernels.graph_sources])
def test_a_token_at_a_time_is_the_same_text(kernels: CudaKernels, source: str) -> None:
    config = model.Config(width=64, heads=2, layers=2)
    assert_one_token_at_a_time_is_the_same(custom_ops(kernels, source), config)


def test_scratch_is_charged_to_the_kernel_and_given_back(bfc: list[Ops]) -> None:
    tokens = bfc[0].sample(jnp.zeros((4, 8)), jnp.full(4, 0.5), 1.0, 0, 1.0)
    tokens.block_until_ready()
    stats = jax_bfc.kernel_stats()["transformer.sample.bfc"]
    assert stats.calls > 0
    assert stats.bytes_in_use == 0


@all_sources
def test_shapes_that_do_not_fit_are_errors(kernels: CudaKernels, source: str) -> None:
    def call(operation: str, operands: list[jax.Array], *shape: int) -> None:
        result = jax.ShapeDtypeStruct(shape, jnp.float32)
        sizes = (1,) * kernels.operations[operation]
        kernels.call(operation, source, operands, [result], sizes, "sequential")[
            0
        ].block_until_ready()

    error = jax.errors.JaxRuntimeError
    with pytest.raises(error, match="the same depth"):
        call("int8_matmul", [jnp.ones((2, 3)), jnp.ones((4, 5))], 2, 5)
    with pytest.raises(error, match="all be float32 or all bfloat16"):
        call("int8_matmul", [jnp.ones((2, 3)), jnp.ones((3, 5), jnp.bfloat16)], 2, 5)
    ops = custom_ops(kernels, source)
    with pytest.raises(error, match=r"q \(4, 2, 8\) and .* \(5, 2, 8\) differ"):
        ops.attention(
            jnp.ones((4, 2, 8)), jnp.ones((5, 2, 8)), jnp.ones((4, 2, 8))
        ).block_until_ready()
    with pytest.raises(error, match="heads of 136 numbers; the most is 128"):
        ops.attention(*(jnp.ones((4, 2, 136)) for _ in range(3))).block_until_ready()


def test_words_stand_for_the_text_they_were_made_from() -> None:
    text = data.corpus(1 << 20, packages=True).tobytes()
    table = data.WordTable(text, 2000)
    tokens = table.encode(text)
    assert 256 < tokens.max() < 2000
    assert len(tokens) < len(text) / 2
    assert table.decode(tokens.tolist()) == text


def test_the_quick_benchmark_prints_its_tables(tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    output = run(
        sys.executable,
        "benchmark.py",
        "--quick",
        "--output",
        plot,
        # This process holds most of the GPU's memory.
        env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        cwd=EXAMPLE,
        timeout=270,
    )
    assert plot.read_bytes().startswith(b"\x89PNG")
    for label in (*CudaKernels.sources.values(), "plain JAX"):
        assert output.count(f"│ {label} ") == 2, output
    assert "FAILED" not in output
