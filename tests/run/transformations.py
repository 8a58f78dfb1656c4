"""Optax transformations of one's own, for `optimizer.transformation`."""

import optax


def momentum(schedule):
    return optax.chain(optax.trace(decay=0.9), optax.scale_by_learning_rate(schedule))
