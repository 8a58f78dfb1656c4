"""config.json, field by field: every field is either read, known to change no number, or an error."""

from __future__ import annotations

import sys
from typing import Any

from grpo_jax.models.config import DecoderConfig

_NAMES = """
    architectures model_type transformers_version dtype torch_dtype use_cache cache_implementation
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id forced_bos_token_id
    forced_eos_token_id initializer_range initializer_factor attention_dropout resid_pdrop embd_pdrop hidden_dropout
    max_position_embeddings max_sequence_length pretraining_tp output_router_logits router_aux_loss_coef
    output_attentions output_hidden_states return_dict return_dict_in_generate chunk_size_feed_forward
    id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class prefix
    is_encoder_decoder is_decoder add_cross_attention cross_attention_hidden_size torchscript pruned_heads
    use_flash_attn attn_implementation unsloth_fixed unsloth_version is_llama_config transformers.js_config
    max_length min_length do_sample temperature top_k top_p num_beams repetition_penalty length_penalty
    num_return_sequences no_repeat_ngram_size early_stopping bad_words_ids
    typical_p num_beam_groups diversity_penalty encoder_no_repeat_ngram_size suppress_tokens begin_suppress_tokens
    output_scores remove_invalid_values exponential_decay_length_penalty tf_legacy_loss tie_encoder_decoder use_bfloat16
"""
WITHOUT_EFFECT = frozenset(_NAMES.split())
"""Fields that change neither logits nor their gradient."""

KINDS = {"sliding_attention": True, "full_attention": False}
"""Kinds of layers by their names in `layer_types`, and whether they are local."""


class Fields:
    """The fields of one config.json, or of a mapping in it; `close` finds those that nobody read.

    Nothing is converted: text is no number, a number is no flag, and a bool is no number.

    Args:
      at: the way to a mapping in config.json, for messages; '' for config.json itself.
    """

    def __init__(self, raw: dict[str, Any], family: str, at: str = "") -> None:
        self.raw, self.family, self.at, self._read = raw, family, at, set(WITHOUT_EFFECT)

    def get(self, name: str, default: Any = None) -> Any:
        """Returns a field, or `default` where it is absent."""
        self._read.add(name)
        return self.raw.get(name, default)

    def positive(self, name: str, default: int | None = None) -> int:
        """Returns an integer field above 0, or `default` where it is null. Without one, absent and null are errors."""
        if self.get(name) is not None:
            return self.integer(name)
        if default is None:
            raise self.error(name, "is missing")
        return default

    def integer(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """Returns an integer field of at least `least`. Null is an error."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(name, f"is {value!r}; expected an integer above {least - 1}")
        return value

    def optional_positive(self, name: str, default: int | None = None) -> int | None:
        """Returns an integer field above 0, or None where it is null."""
        return None if self.get(name, default) is None else self.integer(name, default)

    def number(self, name: str, default: float | None = None, *, above: float = 0) -> float:
        """Returns a field that is a finite number above `above`. Null is an error."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= sys.float_info.max:
            raise self.error(name, f"is {value!r}; expected a number above {above}")
        return float(value)

    def optional_number(self, name: str, default: float | None = None) -> float | None:
        """Returns a field that is a finite number above 0, or None where it is null."""
        return None if self.get(name, default) is None else self.number(name, default)

    def flag(self, name: str, default: bool) -> bool:
        """Returns a field that is true or false. Null is an error."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, f"is {value!r}; expected true or false")
        return value

    def inner(self, name: str) -> Fields:
        """Returns the fields of a mapping; absent and null have none."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.error(name, f"is {value!r}; expected a mapping or null")
        return Fields(value or {}, self.family, f"{self.at}{name}.")

    def fixed(self, name: str, *values: Any) -> Any:
        """Returns a field that may be absent or have one of these values, and nothing else."""
        value = self.get(name, values[0])
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values):
            known = " or ".join(map(repr, values))
            raise self.error(
                name, f"is {value!r}, which changes the numbers in a way that is not supported: {known} is"
            )
        return value

    def error(self, name: str, what: str) -> ValueError:
        """Returns an error about a field."""
        return ValueError(f"config.json of a {self.family!r} model: {self.at}{name} {what}")

    def shape(self, *, tied: bool, head_width: int | None = None, mlp: str = "intermediate_size") -> dict[str, Any]:
        """Returns the widths and counts that all families have.

        Args:
          tied: whether the head is the embedding where the field is absent.
          head_width: where `head_dim` is absent; None divides the width among the heads.
          mlp: the field that holds the MLP's width.
        """
        hidden, heads = self.positive("hidden_size"), self.positive("num_attention_heads")
        if head_width is None and self.get("head_dim") is None and hidden % heads:
            raise self.error("hidden_size", f"is {hidden}, no multiple of num_attention_heads {heads}; give head_dim")
        self.fixed("partial_rotary_factor", 1.0, None)
        self.fixed("rope_interleaved", False)
        self.fixed("use_mrope", False)
        self.integer("max_position_embeddings", 1)  # changes no number, but a run compares its texts with it
        kv_heads = heads if "num_key_value_heads" in self.raw else None
        return {
            "vocab": self.positive("vocab_size"),
            "hidden": hidden,
            "layers": self.positive("num_hidden_layers"),
            "heads": heads,
            "kv_heads": self.positive("num_key_value_heads", kv_heads),
            "head_width": self.positive("head_dim", head_width or hidden // heads),
            "mlp": self.positive(mlp),
            "tied": self.flag("tie_word_embeddings", tied),
            "norm_eps": self.number("rms_norm_eps", 1e-6),
        }

    def biases(self) -> dict[str, bool]:
        """Returns whether all projections of attention have biases."""
        biased = self.flag("attention_bias", False)
        return {"qkv_bias": biased, "out_bias": biased}

    def windows(self, window: int | None, local: list[bool]) -> dict[str, Any]:
        """Returns which layers are local, by `layer_types` or else by `local`, and their window."""
        kinds = self.get("layer_types")
        if kinds is not None:
            if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
                raise self.error("layer_types", f"is {kinds!r}; expected a list of {' and '.join(KINDS)}, or null")
            unknown = sorted(set(kinds) - set(KINDS))
            if unknown:
                raise self.error("layer_types", f"holds {unknown[0]!r}; supported are {' and '.join(KINDS)}")
            if len(kinds) != len(local):
                raise self.error("layer_types", f"has {len(kinds)} entries for {len(local)} layers")
            local = [KINDS[kind] for kind in kinds]
        if not any(local):
            return {}
        if window is None:
            raise self.error("layer_types", "has local layers, but there is no sliding_window")
        return {"window": window, "local": tuple(local)}

    def close(self) -> None:
        """Refuses fields that nobody read: they may stand for something that changes the numbers."""
        unknown = sorted(name for name in self.raw if name not in self._read and not name.startswith("_"))
        if unknown:
            raise self.error(
                ", ".join(unknown),
                "is not known here and may change the numbers; remove it from config.json if you know that it does not",
            )


def shape_fields(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields that `Fields.shape` reads."""
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.mlp,
        "tie_word_embeddings": config.tied,
        "rms_norm_eps": config.norm_eps,
    }


def layer_types(config: DecoderConfig) -> list[str]:
    """Returns the kind of every layer, as config.json names it."""
    names = {local: name for name, local in KINDS.items()}
    return [names[config.is_local(i)] for i in range(config.layers)]
