"""Models of the Hugging Face format, in and out: directories with config.json, safetensors and a tokenizer.

source = read_source(resolve_model("owner/model"))
params = load(source.directory, source.config, source.names, mesh)
export(params, source.config, tokenizer, "trained", card=card, source=source)
"""

from grpo_jax.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "grpo_jax.models.weights.card": ("Card",),
        "grpo_jax.models.weights.exporting": ("export",),
        "grpo_jax.models.weights.hub": ("resolve_model",),
        "grpo_jax.models.weights.model": ("load_model", "open_model"),
        "grpo_jax.models.weights.read": ("check", "load"),
        "grpo_jax.models.weights.source": ("ModelSource", "fitting_family", "read_source"),
        "grpo_jax.models.weights.write": ("save",),
    },
)
