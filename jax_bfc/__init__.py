"""Scratch memory for custom JAX kernels, from one arena per device.

Kernels written against XLA's FFI take ``jax_bfc::ScratchAllocator`` from the
C++ header in :func:`include_dir`; this package configures and observes the
arena behind it. Importing it starts no JAX backend.
"""

import importlib.util

from jax_bfc._command import is_command

if importlib.util.find_spec("jax_bfc._core") is None:
    raise ImportError(
        f"jax_bfc is imported from its source folder ({__path__[0]}), where its "
        "native part is not built. Run `pip install .` there, and start Python in "
        "another folder."
    )

# First, because what it does at exit must come after what we do. Few of our own
# commands need it.
if not is_command():
    importlib.import_module("jax")

from jax_bfc._annotate import annotate
from jax_bfc._config import Config, configure, get_config
from jax_bfc._errors import OutOfMemoryError
from jax_bfc._ffi import cmake_dir, include_dir, register_ffi_target
from jax_bfc._oom import OomHandle, on_oom
from jax_bfc._peak import Peak, peak
from jax_bfc._record import record
from jax_bfc._recording import Recording, RecordingError
from jax_bfc._scratch import Scratch, scratch
from jax_bfc._snapshot import Snapshot, snapshot
from jax_bfc._stats import (
    KernelStats,
    kernel_stats,
    last_oom_report,
    memory_stats,
    reset,
    reset_peak_memory_stats,
    trim,
)
from jax_bfc._summary import print_summary
from jax_bfc._version import __version__

__all__ = [
    "Config",
    "KernelStats",
    "OomHandle",
    "OutOfMemoryError",
    "Peak",
    "Recording",
    "RecordingError",
    "Scratch",
    "Snapshot",
    "__version__",
    "annotate",
    "cmake_dir",
    "configure",
    "get_config",
    "include_dir",
    "kernel_stats",
    "last_oom_report",
    "memory_stats",
    "on_oom",
    "peak",
    "print_summary",
    "record",
    "register_ffi_target",
    "reset",
    "reset_peak_memory_stats",
    "scratch",
    "snapshot",
    "trim",
]
