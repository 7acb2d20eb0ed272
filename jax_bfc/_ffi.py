"""FFI targets, and where kernels find the headers."""

import os
from typing import Any

from jax_bfc import _core

_PLATFORMS = {"cpu": "cpu", "gpu": "CUDA", "cuda": "CUDA", "CUDA": "CUDA"}


def register_ffi_target(
    name: str,
    fn: Any,
    platform: str = "cpu",
    api_version: int = 1,
    **kwargs: Any,
) -> None:
    """``jax.ffi.register_ffi_target``, plus a call site for each custom call.

    Scratch that the handler takes is counted under ``name`` in
    :func:`jax_bfc.kernel_stats`. Works before any backend exists and after.
    Handlers registered by ``jax.ffi.register_ffi_target`` get scratch too, and
    count as ``(unregistered)``.

    Args:
        name: of the target, as ``jax.ffi.ffi_call`` takes it.
        fn: a capsule with the execute handler, or a dict from stage names to
            capsules. With an instantiate handler of its own the target keeps
            that; see ``jax_bfc::CallSite``.
        platform: "cpu", or "gpu", "cuda" or "CUDA", which mean the same.
        api_version: 1, the typed FFI.
        **kwargs: go to ``jax.ffi.register_ffi_target``.

    Raises:
        ValueError: another platform or API version, or no execute handler.
        TypeError: ``name`` is no text, or ``fn`` has no capsules.
    """
    import jax

    if not isinstance(name, str):
        raise TypeError(f"name={name!r} is a {type(name).__name__}; valid: text")
    if platform not in _PLATFORMS:
        raise ValueError(
            f"platform={platform!r}; valid: {', '.join(map(repr, _PLATFORMS))}"
        )
    if api_version != 1:
        raise ValueError(
            f"api_version={api_version!r}; valid: 1, since scratch needs the typed FFI"
        )
    stages = dict(fn) if isinstance(fn, dict) else {"execute": fn}
    if "execute" not in stages:
        raise ValueError(
            f"fn has the stages {sorted(stages)}; valid: those with 'execute' "
            "among them"
        )
    for stage, capsule in stages.items():
        if type(capsule).__name__ != "PyCapsule":
            raise TypeError(
                f"the {stage} handler is a {type(capsule).__name__}; valid: a "
                "PyCapsule, such as jax.ffi.pycapsule(library.symbol) gives"
            )
    target = _core.register_target(name, stages["execute"])
    if target is not None:  # the table has room: else it is `(unregistered)`
        instantiate, stages["execute"] = target
        stages.setdefault("instantiate", instantiate)
    jax.ffi.register_ffi_target(
        name, stages, platform=_PLATFORMS[platform], api_version=api_version, **kwargs
    )


def _installed(folder: str) -> str:
    # Beside the native part: an editable install has the sources elsewhere.
    return os.path.join(os.path.dirname(os.path.abspath(_core.__file__)), folder)


def include_dir() -> str:
    """The directory to compile with: it holds ``jax_bfc/scratch.h``."""
    return _installed("include")


def cmake_dir() -> str:
    """The directory of the CMake package, for ``jax_bfc_DIR``."""
    return _installed("cmake")
