"""Two processes with two devices each: each reads its half, and together they write one whole directory."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file

from tests.models.golden.compare import HERE


def test_each_process_reads_what_its_devices_need(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    arguments = [str(HERE / "qwen3_moe"), str(tmp_path / "out")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.models.weights.two_processes", address, str(number), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    found = [json.loads(shown.splitlines()[-1]) for shown, _ in outputs]
    original = load_file(HERE / "qwen3_moe" / "model.safetensors")
    total = sum(tensor.size for tensor in original.values())
    for one in found:
        assert one["devices"] == 4
        assert one["complete"]
        # Half of the matrices, and the whole of the norms, which every device holds.
        assert total / 2 < one["read"] < 0.52 * total
    written = {name: t for file in (tmp_path / "out").glob("*.safetensors") for name, t in load_file(file).items()}
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
