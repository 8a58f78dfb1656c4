"""Eight virtual devices for the tests of the mesh; one cache of compiled programs for the commands that tests start."""

import os

# Before the first import of JAX: the number of devices is read once.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
