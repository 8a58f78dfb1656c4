"""Rewards that an untrained model earns unevenly, so that groups differ."""


def digits(prompts, completions, **_):
    """Returns the number of digits."""
    return [float(sum(c.isdigit() for c in completion)) for completion in completions]


def characters(prompts, completions, **_):
    """Returns the number of characters."""
    return [float(len(completion)) for completion in completions]


def some_raise(prompts, completions, **_):
    """Returns 1, or raises where a completion starts with a digit."""
    if any(completion[:1].isdigit() for completion in completions):
        raise ValueError("starts with a digit")
    return [1.0] * len(completions)


def thirds(prompts, completions, **_):
    """Returns steps: after each third of the completion, the share of digits in it."""
    steps = []
    for text in completions:
        ends = [len(text) * i // 3 for i in (1, 2, 3)]
        parts = [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        steps.append([(end, sum(c.isdigit() for c in part)) for end, part in zip(ends, parts, strict=True)])
    return steps
