"""Rewards that behave and rewards that do not, at the top level of a module so that workers can import them."""

import asyncio
import os
import pathlib
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


def touches(prompts, completions, file, **_):
    for path in file:
        pathlib.Path(path).touch()
    return [1.0] * len(completions)


def awaits_file(prompts, completions, file, **_):
    while not all(pathlib.Path(path).exists() for path in file):
        time.sleep(0.01)
    return [float(len(completion)) for completion in completions]


def hangs_once(prompts, completions, file, **_):
    if not pathlib.Path(file[0]).exists():
        pathlib.Path(file[0]).touch()
        time.sleep(60)
    return [4.0] * len(completions)


def writes_down(prompts, completions, file, **_):
    with open(file[0], "a") as notes:
        notes.writelines(f"{completion}\n" for completion in completions)
    return [1.0] * len(completions)


class EndsItsReader:
    """Kills the process that unpickles it: a worker, before it has taken the call."""

    def __reduce__(self):
        return os._exit, (9,)
