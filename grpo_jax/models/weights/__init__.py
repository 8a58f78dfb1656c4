"""Models of the Hugging Face format, in and out: directories with config.json, safetensors and a tokenizer.

source = read_source(resolve_model("owner/model"))
params = load(source.directory, source.config, source.names, mesh)
export(params, source.config, tokenizer, "trained", card=card, source=source)
"""

from grpo_jax.models.weights.card import Card
from grpo_jax.models.weights.export import export
from grpo_jax.models.weights.hub import resolve_model
from grpo_jax.models.weights.read import check, load
from grpo_jax.models.weights.source import ModelSource, fitting_family, read_source
from grpo_jax.models.weights.write import save

__all__ = ["Card", "ModelSource", "check", "export", "fitting_family", "load", "read_source", "resolve_model", "save"]
