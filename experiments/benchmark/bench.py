"""Seconds of one training step, part by part, as one JSON line.

What it does: builds a model of the given shape from random weights, rolls out, scores the reference if there is a KL
term, updates, and repeats; reports the median of the measured steps, the first step (with compilation), and the peak
memory of the process. Completions run to the limit, or with `--ragged` to the first token 1, which a random model draws
with a probability of about one over its vocabulary. Steps that compiled a program for a shape that no step had before
are named and left out of the medians. What it leaves out: text, rewards and files, which do not depend on the shape.

`occupancy` is the share of live tokens in what the rollout computed, `padding` that of padding in the update.

The rate of a 2048 x 2048 float32 matrix product, measured in the same process, is the yardstick: `rollout_share` and
`update_share` are the parts' FLOPs over their time and that rate. FLOPs are counted analytically: a prompt once, the
head on completions only, attention over the keys a query can see, a backward pass as two forwards.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.core import grpo
from grpo_jax.learn import Learner, OptimizerSettings, UpdateSettings, make_optimizer, pack
from grpo_jax.learn.packing import Room
from grpo_jax.mesh import make_mesh
from grpo_jax.models import DecoderConfig
from grpo_jax.rollout import Stages
from grpo_jax.rollout.stages import PROGRAMS
from grpo_jax.run.compiled import (
    compiled_batch,
    compiled_fresh_state,
    compiled_keys,
    compiled_publish,
    compiled_update,
)
from grpo_jax.types import Grades, PromptBatch


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value, meaning in (
        ("hidden", 256, "width of the residual stream"),
        ("layers", 4, "blocks"),
        ("heads", 8, "query heads"),
        ("kv-heads", 2, "key/value heads"),
        ("mlp", 688, "inner width of the MLP"),
        ("vocab", 4096, "tokens in the vocabulary"),
        ("prompts", 8, "prompts per step"),
        ("group", 8, "completions per prompt"),
        ("prompt-length", 64, "tokens of a prompt"),
        ("completion-length", 128, "tokens of a completion"),
        ("micro-prompts", 0, "prompts per micro-batch; 0 takes all at once"),
        ("logprob-chunk", 16, "completion positions whose logits are alive at once"),
        ("unroll", 1, "layers per iteration of the training scan"),
        ("check-every", 16, "tokens between tests for the end"),
        ("rows", 0, "completions drawn at once; 0 takes all"),
        ("steps", 5, "measured steps after the first"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{meaning} (default {value})")
    parser.add_argument("--ragged", action="store_true", help="token 1 ends a completion; lengths are about geometric")
    parser.add_argument("--kl", type=float, default=0.04, help="KL coefficient in the loss; 0 keeps no reference")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--remat", default="none", choices=("none", "layer"))
    return parser.parse_args()


def matmul_rate(size: int = 2048) -> float:
    """Returns FLOP/s of a float32 matrix product, the best of ten."""
    a = jnp.ones((size, size))
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best = min(_seconds(lambda: product(a).block_until_ready()) for _ in range(10))
    return 2 * size**3 / best


def forward_flops(config: DecoderConfig, *, prompts: int, group: int, prompt_length: int, length: int) -> float:
    """Returns the FLOPs of one forward pass over a batch."""
    heads = config.heads * config.head_width
    layer = 2 * config.hidden * (2 * heads + 2 * config.kv_heads * config.head_width + 3 * config.mlp)
    pair = 4 * heads  # one query and one key: the score, and the sum of values
    prompt_pairs = prompt_length * (prompt_length + 1) / 2
    pairs = length * prompt_length + length * (length + 1) / 2
    per_layer = prompts * (prompt_length * layer + prompt_pairs * pair + group * (length * layer + pairs * pair))
    return config.layers * per_layer + prompts * group * length * 2 * config.hidden * config.vocab


def main() -> None:
    o = options()
    config = DecoderConfig(
        vocab=o.vocab,
        hidden=o.hidden,
        layers=o.layers,
        heads=o.heads,
        kv_heads=o.kv_heads,
        head_width=o.hidden // o.heads,
        mlp=o.mlp,
        dtype=o.dtype,
        remat=o.remat,
        unroll=o.unroll,
        logprob_chunk=o.logprob_chunk,
    )
    learner = Learner(
        model=config,
        objective=dataclasses.replace(grpo(), kl_coef=o.kl),
        optimizer=make_optimizer(OptimizerSettings(learning_rate=1e-5), 1e-5),
        updates=UpdateSettings(micro_prompts=o.micro_prompts or None),
    )
    room = Room(
        length=o.completion_length,
        prompt_length=o.prompt_length,
        hidden=o.hidden,
        micro_prompts=o.micro_prompts or None,
    )
    random = np.random.default_rng(0)
    prompt = PromptBatch(
        tokens=random.integers(0, o.vocab, (o.prompts, o.prompt_length)).astype(np.int32),
        mask=np.ones((o.prompts, o.prompt_length), bool),
    )
    grades = Grades(
        reward=jnp.asarray(random.random((o.prompts, o.group)), jnp.float32),
        valid=jnp.ones((o.prompts, o.group), bool),
    )

    known = []

    def step(state, number: int):
        clock, programs = [time.perf_counter()], compiled_programs()
        published = compiled_publish(config, state.params)
        stages = Stages(
            config,
            published,
            prompt,
            compiled_keys(0, number, jnp.arange(o.prompts), group=o.group),
            max_tokens=o.completion_length,
            eos_ids=(1,) if o.ragged else (),
            check_every=o.check_every,
            rows=o.rows or None,
        )
        rollout = stages.finish()
        clock.append(time.perf_counter())
        lengths = rollout.mask.sum(-1)
        layout, shape, padding = pack(lengths, prompt.mask.sum(-1), room, known=known)
        known.extend({shape} - set(known))
        batch = jax.block_until_ready(compiled_batch(learner, state, prompt, rollout, grades, layout))
        clock.append(time.perf_counter())
        state, metrics = compiled_update(learner, state, batch, None, layout)
        jax.block_until_ready((state, metrics))
        clock.append(time.perf_counter())
        return state, {
            "rollout_seconds": clock[1] - clock[0],
            "scoring_seconds": clock[2] - clock[1],
            "update_seconds": clock[3] - clock[2],
            "step_seconds": clock[3] - clock[0],
            "tokens": int(lengths.sum()),
            "longest": int(lengths.max()),
            "occupancy": stages.occupancy,
            "padding": padding,
            "compiled": compiled_programs() - programs,
        }

    with jax.set_mesh(make_mesh()):
        state = compiled_fresh_state(learner, 0)
        jax.block_until_ready(state)
        state, first = step(state, 0)
        steps = []
        for number in range(1, o.steps + 1):
            state, row = step(state, number)
            steps.append(row)
            print(json.dumps(_rounded(row)), file=sys.stderr)
        rate = matmul_rate()
    steady = [row for row in steps if not row["compiled"]] or steps
    median = {name: statistics.median(row[name] for row in steady) for name in first if name != "compiled"}
    shape = {"prompts": o.prompts, "group": o.group, "prompt_length": o.prompt_length, "length": o.completion_length}
    scored = median["scoring_seconds"] + median["update_seconds"]
    result = {
        "model": f"{o.hidden}x{o.layers} heads {o.heads}/{o.kv_heads} mlp {o.mlp} vocab {o.vocab} {o.dtype}",
        **shape,
        "ragged": o.ragged,
        "kl": o.kl,
        "micro_prompts": o.micro_prompts,
        "rows": o.rows,
        **median,
        "first_step_seconds": first["step_seconds"],
        "compile_seconds": first["step_seconds"] - median["step_seconds"],
        "programs": compiled_programs(),
        "steps_measured": len(steady),
        "generated_tokens_per_second": median["tokens"] / median["rollout_seconds"],
        "trained_tokens_per_second": median["tokens"] / scored,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "matmul_gflops": rate / 1e9,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    if not o.ragged:
        forward = forward_flops(config, **shape)
        result["rollout_share"] = forward / median["rollout_seconds"] / rate
        result["update_share"] = 3 * forward / median["update_seconds"] / rate
    print(json.dumps(_rounded(result)))


def compiled_programs() -> int:
    """Returns the number of programs that were compiled so far for what depends on the lengths."""
    return sum(program.jitted()._cache_size() for program in (*PROGRAMS, compiled_batch, compiled_update))


def _rounded(row: dict) -> dict:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def _seconds(action) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
