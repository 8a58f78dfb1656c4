"""Every setting of a run: its name, type, bounds, default, meaning and unit.

An int is accepted where a number is expected and becomes a float; a bool is no number; text is never converted.
Rules between fields are in `validate`. Nothing here imports JAX.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue
from pydantic.dataclasses import dataclass

Whole = Annotated[int, Field(strict=True, ge=0, description="an integer of at least 0")]
Count = Annotated[int, Field(strict=True, ge=1, description="an integer of at least 1")]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, description="a finite number")]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False, description="a number of at least 0")]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False, description="a number above 0")]
Share = Annotated[float, Field(strict=True, ge=0, le=1, description="a number from 0 to 1")]
PositiveShare = Annotated[float, Field(strict=True, gt=0, le=1, description="a number above 0, at most 1")]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1, description="a number from 0 up to, not including, 1")]
Flag = Annotated[bool, Field(strict=True, description="true or false")]
Text = Annotated[str, Field(strict=True, min_length=1, description="text that is not empty")]
VARIABLES = "a mapping of names to text (a date in quotes), numbers, true, false, null, lists or mappings"
Variables = Annotated[dict[Text, JsonValue], Field(strict=True, description=VARIABLES)]

Adapted = Literal["q", "k", "v", "out", "gate", "up", "down"]

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelSection:
    """The transformer: one that exists, by `path`, or a new one of a shape given by the other fields."""

    path: Text | None = None
    """A directory of Hugging Face's form, or a hub id such as Qwen/Qwen2.5-0.5B; null initialises a new model."""
    hidden: Count | None = None
    """Width of the residual stream."""
    layers: Count | None = None
    """Number of blocks."""
    heads: Count | None = None
    """Query heads."""
    kv_heads: Count | None = None
    """Key/value heads; each serves heads / kv_heads query heads."""
    head_width: Count | None = None
    """Width of one head (even); null means hidden / heads."""
    mlp: Count | None = None
    """Inner width of the feed-forward part."""
    tied: Flag = True
    """The output projection is the embedding."""
    qkv_bias: Flag = False
    """Biases on the query, key and value projections."""
    qk_norm: Flag = False
    """RMS norm of each query and key head before the rotation."""
    rope_theta: Positive = 10000.0
    """Base of the rotary wavelengths."""
    norm_eps: Positive = 1e-6
    """Added to the mean square inside RMS norms."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the computation; parameters that are trained stay float32. Null: bfloat16 with `path`, else float32."""
    remat: Literal["none", "dots", "layer"] = "none"
    """The backward pass computes again: nothing, all but matrix products, or whole layers. Less memory, more time."""
    unroll: Count = 1
    """Layers per iteration of the training scan: more compile longer and, on a CPU, run faster."""
    logprob_chunk: Count = 16
    """Completion positions whose logits are alive at once."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoraSection:
    """Low-rank adapters (LoRA): they alone are trained, and the weights they change are the reference."""

    rank: Count | None = None
    """Rank of what is added to each adapted matrix; null trains all weights."""
    alpha: Positive = 16.0
    """What is added is multiplied by alpha / rank."""
    targets: tuple[Adapted, ...] = ("q", "k", "v", "out", "gate", "up", "down")
    """The adapted matrices of every layer: of attention q, k, v, out; of the feed-forward part gate, up, down."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Mesh:
    """Devices along each axis of the mesh; their product is the number of devices."""

    data: Count = 1
    """Splits prompts."""
    group: Count = 1
    """Splits the completions of a prompt."""
    fsdp: Count = 1
    """Splits prompts, and shards parameters and optimizer state."""
    tensor: Count = 1
    """Splits heads, the feed-forward width and the vocabulary."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    """Where prompts come from."""

    source: Text
    """`arithmetic` (made up on the fly), or the path of a .jsonl file."""
    test: Text | None = None
    """Path of a .jsonl file of held-out rows; null for arithmetic, and where none are held out."""
    url: Text | None = None
    """Folder of the web that has both files: where one is missing, the message says how to fetch it."""
    prompt: Text = "prompt"
    """The .jsonl column that holds the prompt; the others reach the rewards by name."""
    train_size: Count | None = None
    """Problems to train on; null means every row of a .jsonl file."""
    test_size: Count | None = None
    """Held-out problems; null means every row of a .jsonl file."""
    alphabet: Text | None = None
    """Characters of the tokenizer; null means printable ASCII (for arithmetic, its own characters)."""
    template: Text | None = None
    """Chat template: `model` (its own), `r1`, a file or Jinja; null takes text prompts as they stand."""
    system: Text | None = None
    """System prompt in front of every conversation; needs a template."""
    template_options: Variables = field(default_factory=dict)
    """Variables of the chat template, such as {enable_thinking: false}; needs model.path."""
    too_long: Literal["error", "skip"] = "error"
    """Prompts beyond prompt_length: `error` refuses the data, `skip` leaves them out and says how many."""
    operations: Count = 2
    """Operations in one problem (arithmetic only)."""
    digits: Count = 2
    """Digits of each operand (arithmetic only)."""
    prompt_length: Count
    """Tokens that a prompt may have, BOS included."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Sampling:
    """How completions are drawn in training: from the whole distribution, so there is no filter here."""

    group: Count = 8
    """Completions per prompt."""
    max_tokens: Count
    """Tokens that a completion may have, the end included."""
    temperature: Positive = 1.0
    """Divides the logits; the log-probs that are scored apply it too."""
    check_every: Count = 8
    """Tokens drawn between two tests for the end of all rows."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RewardConfig:
    """One term of the reward."""

    function: Text
    """Name of the function: a built-in `module.name`, or `package.module:name`."""
    weight: Number = 1.0
    """Factor of this term in the sum."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Train:
    """The loop of policy updates."""

    steps: Count
    """Rollouts, each followed by its updates."""
    prompts: Count
    """Prompts per step; each is sampled `sampling.group` times."""
    minibatches: Count = 1
    """Optimizer updates that one pass over a step's prompts is cut into."""
    epochs: Count = 1
    """Passes over the prompts of a step."""
    micro_prompts: Count | None = None
    """Prompts whose gradient is computed at once; null means a whole minibatch."""
    reference_every: Count | None = None
    """Steps after which the reference moves to the current policy; null keeps the first one."""
    reference_mix: PositiveShare = 1.0
    """How far the reference moves each time: 1 replaces it, less mixes the parameters (in its dtype)."""
    dynamic_rounds: Count = 1
    """Rounds of prompts a step may draw to replace groups of equal rewards (dynamic sampling); 1 replaces none."""
    overlong_buffer: Count | None = None
    """Tokens before sampling.max_tokens over which the reward sinks linearly; null leaves rewards alone."""
    overlong_penalty: NonNegative = 1.0
    """How far the reward has sunk at the limit, in units of the reward."""
    mask_truncated: Flag = False
    """Leave completions that the limit cut out of the loss."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Optimizer:
    """AdamW and its schedule."""

    learning_rate: Positive
    """Highest learning rate."""
    critic_learning_rate: Positive | None = None
    """Highest learning rate of the critic, if the objective has one; null takes learning_rate."""
    warmup_steps: Whole = 0
    """Optimizer updates of linear increase from 0."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What follows the increase; cosine and linear reach 0 at the last update."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay, per update and unit of learning rate."""
    b1: Decay = 0.9
    """Decay of the mean of gradients."""
    b2: Decay = 0.999
    """Decay of the mean of squared gradients."""
    eps: Positive = 1e-8
    """Added to the root of the mean square."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the stored mean of gradients; the mean of squares stays float32."""
    max_grad_norm: Positive | None = 1.0
    """Global norm above which a gradient is scaled down; null never scales."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Warmup:
    """Supervised updates on demonstrations, before the first rollout."""

    steps: Whole = 0
    """Updates; 0 skips the phase."""
    batch: Count = 256
    """Demonstrations per update."""
    learning_rate: Positive = 1e-3
    """Learning rate of this phase."""
    wrong: Share = 0.5
    """Share of carries that demonstrations forget."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Eval:
    """Evaluation on held-out problems; its filters never touch training."""

    every: Count | None = None
    """Steps between evaluations; null never evaluates during training."""
    samples: Count = 4
    """Sampled completions per held-out problem."""
    top_k: Count | None = None
    """Keep the k likeliest tokens; null keeps all."""
    top_p: PositiveShare | None = None
    """Keep the smallest set of likeliest tokens with this much probability; null keeps all."""
    min_p: PositiveShare | None = None
    """Keep tokens at least this likely relative to the likeliest; null keeps all."""
    answer_after: str = ""
    """maj@k votes on the text after the last occurrence of this; empty votes on the whole completion."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Checkpoint:
    """When state is written."""

    every: Count = 20
    """Steps between checkpoints."""
    keep: Count = 2
    """Newest checkpoints that stay on disk."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """A whole run."""

    seed: Whole = 0
    """Every random key and the order of the data derive from it."""
    out: Text = "outputs/run"
    """Directory of everything that the run writes."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Continue from a checkpoint in `out`: if there is one, never, or fail without one."""
    model: ModelSection
    lora: LoraSection = LoraSection()
    mesh: Mesh = Mesh()
    data: Data
    sampling: Sampling
    rewards: tuple[RewardConfig, ...] = ()
    """Terms of the reward, summed by weight."""
    reward_workers: Whole = 0
    """Processes that compute rewards; 0 computes them in the main process."""
    reward_deadline: Positive = 10.0
    """Seconds after which a reward is given up and its sample masked out."""
    objective: str | dict[str, Any]
    """A preset's name, or `{preset: name, field: replacement, ...}`; `objective.build_objective` reads it."""
    train: Train
    optimizer: Optimizer
    warmup: Warmup = Warmup()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
