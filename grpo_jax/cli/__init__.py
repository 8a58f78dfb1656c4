"""The command line: `grpo-jax train|eval|sample CONFIG [dotted.key=value ...]`."""
