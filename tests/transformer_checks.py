"""What the tests of examples/transformer assert on CPU and on GPU.

To be imported with the example's folder on the path.
"""

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from bytelm import model
from bytelm.checks import Check
from bytelm.ops import Ops


def assert_all_pass(results: Iterable[Check]) -> None:
    """Fails with every result that is wrong, and by how much."""
    everything = list(results)
    assert everything
    failed = [
        f"{check.operation} {check.result} ({check.source}): "
        f"error {check.error:.2e}, allowed {check.tolerance:.0e}"
        for check in everything
        if not check.passed
    ]
    assert not failed, (
        f"{len(failed)} of {len(everything)} results are wrong:\n" + "\n".join(failed)
    )


def assert_samples_continue_their_prompt(
    all_ops: Sequence[Ops], config: model.Config
) -> None:
    """And are the same from all."""
    prompt = jnp.asarray([list(b"import "), list(b"return ")], jnp.int32)
    tokens = [
        model.generate(
            model.init(config),
            prompt,
            jax.random.key(0),
            config=config,
            ops=ops,
            length=20,
            sampling=model.Sampling(),
        )
        for ops in all_ops
    ]
    assert tokens[0].shape == (2, 20)
    np.testing.assert_array_equal(tokens[0][:, :7], prompt)
    for ops, other in zip(all_ops, tokens, strict=True):
        np.testing.assert_array_equal(tokens[0], other, ops.name)


def assert_one_token_at_a_time_is_the_same(ops: Ops, config: model.Config) -> None:
    """As the whole loop in one program."""
    prompt = jnp.asarray([list(b"import "), list(b"return ")], jnp.int32)
    sampling = model.Sampling()
    params, key = model.init(config), jax.random.key(0)
    whole = model.generate(
        params,
        prompt,
        key,
        config=config,
        ops=ops,
        length=20,
        sampling=sampling,
    )
    step = jax.jit(
        functools.partial(
            model.decode, config=config, ops=ops, given=7, sampling=sampling
        ),
        donate_argnums=1,
    )
    state = model.start_decoding(prompt, config, 20)
    for _ in range(19):
        state = step(
            model.cast(params, config), state, jax.random.uniform(key, (20, 2))
        )
    np.testing.assert_array_equal(state[0], whole)
