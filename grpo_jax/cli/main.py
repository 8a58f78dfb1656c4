"""`grpo-jax`: one command, one clear message for each mistake.

Nothing heavy is imported here: reward workers import the main module again.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from grpo_jax.cli.error import UserError

COMMANDS = {
    "train": "train a policy; continues from the last checkpoint of the run, if there is one",
    "eval": "accuracy, pass@k and maj@k of the last checkpoint on the held-out problems",
    "sample": "answer prompts from the last checkpoint",
    "export": "write a checkpoint as a model directory in the Hugging Face format",
}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0; 1 for a mistake, which is printed; 130 for a run that was stopped."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if unknown := [word for word in rest if word.startswith("-")]:
        parser.error(f"unknown option {unknown[0]}; changes are written dotted.key=value")
    # argparse gives up on positional words behind an option; they are overrides all the same.
    arguments.overrides += rest
    # `my_rewards:function` in a configuration is looked for where the command is given, as `python -m` would.
    sys.path.insert(0, "")
    from grpo_jax.config import ConfigError

    try:
        return importlib.import_module(f"grpo_jax.cli.{arguments.command}").run(arguments)
    except (ConfigError, UserError) as error:
        print(f"grpo-jax {arguments.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grpo-jax", description="Group Relative Policy Optimization on a JAX mesh.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose)
        changes = "changes, such as optimizer.learning_rate=1e-6, or further YAML files, such as a recipe"
        if name == "export":
            changes = "changes of mesh.* and model.path, where they are not those of the run any more"
            command.add_argument("checkpoint", metavar="CHECKPOINT", help="a run's directory, or one of checkpoints/")
            command.add_argument("directory", metavar="DIR", help="where the model goes; must not exist, or be empty")
            command.add_argument(
                "--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"), help="of the weights"
            )
            command.add_argument("--adapter", action="store_true", help="only LoRA's adapters, in the format of PEFT")
        else:
            command.add_argument("config", metavar="CONFIG", help="a YAML file")
        command.add_argument("overrides", nargs="*", metavar="dotted.key=value", help=changes)
        if name == "sample":
            command.add_argument("--prompt", action="append", required=True, help="a prompt; may be given repeatedly")
            command.add_argument("--n", type=int, default=1, help="completions per prompt (default 1)")
            command.add_argument("--temperature", type=float, help="0 is greedy; default: the config's")
    return parser


if __name__ == "__main__":
    sys.exit(main())
