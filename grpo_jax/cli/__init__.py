"""The command line: `grpo-jax train|eval|sample|export CONFIG [dotted.key=value ...]`."""
