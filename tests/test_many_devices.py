"""CPU devices of several processes, and many of one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

_PROCESS = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
import jax_bfc

devices = jax.local_devices()
for number, device in enumerate(devices):
    size = 1 << 20 << number
    jax_bfc.configure(device=device, limit_bytes=64 << 20 << number)
    with jax_bfc.scratch(size, device=device):
        assert jax_bfc.memory_stats(device)["bytes_in_use"] == size
        for other in devices:
            if other != device:
                assert jax_bfc.memory_stats(other)["bytes_in_use"] == 0
    assert jax_bfc.get_config(device).limit_bytes == 64 << 20 << number
for device in jax.devices():
    if device in devices:
        continue
    try:
        jax_bfc.memory_stats(device)
    except ValueError as error:
        assert "belongs to process" in str(error), error
    else:
        raise AssertionError(f"{device} is another process's")
print("ok", len(devices), len(jax.devices()))
"""


@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1)])
def test_each_process_has_pools_for_its_own_devices(
    processes: int, devices: int, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-c", _PROCESS, address, str(processes)]
    running = [
        subprocess.Popen(
            [*command, str(i)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    for process in running:
        out, err = process.communicate(timeout=180)
        assert out == f"ok {devices} {processes * devices}\n", err[-2000:]


_MANY = """
import jax
import jax_bfc

assert len(jax.devices()) == 512
for number in (0, 127, 128, 511):
    with jax_bfc.scratch(1000, device=jax.devices()[number]):
        stats = jax_bfc.memory_stats(jax.devices()[number])
        assert stats["bytes_in_use"] == 1024, stats
        assert jax_bfc.snapshot(jax.devices()[number]).device == f"cpu:{number}"
print("ok")
"""


def test_512_devices_of_one_process_have_pools(tmp_path: Path) -> None:
    flags = "--xla_force_host_platform_device_count=512"
    done = subprocess.run(
        [sys.executable, "-c", _MANY],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.stdout == "ok\n", done.stderr[-2000:]
