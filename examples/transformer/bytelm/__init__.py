"""A byte-level transformer whose heavy operations are custom XLA FFI kernels."""
