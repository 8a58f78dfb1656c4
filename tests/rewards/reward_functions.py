"""Rewards that behave and rewards that do not, at the top level of a module so that workers can import them."""

import asyncio
import os
import sys
import time


class Unloadable(Exception):
    """Pickles, but cannot be unpickled: its constructor needs a second argument."""

    def __init__(self, first, second):
        super().__init__(first)


def length(prompts, completions, **_):
    return [len(completion) for completion in completions]


def column(prompts, completions, column, **_):
    return column


async def slow_length(prompts, completions, **_):
    await asyncio.sleep(0.01)
    return [float(len(completion)) for completion in completions]


def raises(prompts, completions, **_):
    if any("raise" in completion for completion in completions):
        raise KeyError("on purpose")
    return [1.0] * len(completions)


def raises_unloadable(prompts, completions, **_):
    if "raise" in completions:
        raise Unloadable(1, 2)
    return [1.0] * len(completions)


def leaves(prompts, completions, **_):
    if "raise" in completions:
        sys.exit(3)
    return [1.0] * len(completions)


def hangs(prompts, completions, **_):
    if "hang" in completions:
        time.sleep(60)
    return [2.0] * len(completions)


def dies(prompts, completions, **_):
    if "die" in completions:
        os._exit(7)
    return [3.0] * len(completions)


def process_id(prompts, completions, **_):
    return [float(os.getpid())] * len(completions)


def platform(prompts, completions, **_):
    return [float(os.environ.get("JAX_PLATFORMS") == "cpu")] * len(completions)


def sizes(prompts, completions, **_):
    return [float(len(completions))] * len(completions)


def stepwise(prompts, completions, steps, **_):
    return steps


def one_too_few(prompts, completions, **_):
    return [1.0] * (len(completions) - 1)
