"""A run as a value: the typed schema, and the YAML that fills it.

`grpo_jax.config.build` makes a run of it; that needs JAX, so it is not imported here.
"""

from grpo_jax.config.load import dump, load, to_dict
from grpo_jax.config.schema import Config
from grpo_jax.errors import ConfigError

__all__ = ["Config", "ConfigError", "dump", "load", "to_dict"]
