"""Whether this process is one of our own commands."""

import re
import sys


def is_command() -> bool:
    """Whether Python looks for what ``python -m jax_bfc`` runs.

    While it looks, argv[0] is "-m", whatever the program; the program's name then
    stands where argv begins in what the process was started with.
    """
    if sys.argv[:1] != ["-m"] or len(sys.orig_argv) < len(sys.argv):
        return False
    name = sys.orig_argv[-len(sys.argv)]
    return re.fullmatch(r"(-\w*m)?jax_bfc(\.\w+)*", name) is not None
