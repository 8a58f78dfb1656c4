"""The command line: `grpo-jax train|eval|sample CONFIG [dotted.key=value ...]`, `grpo-jax export CHECKPOINT DIR`."""
