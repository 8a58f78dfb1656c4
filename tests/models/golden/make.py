"""Writes the golden files: tiny checkpoints with random weights, and what transformers' own models make of them.

    python tests/models/golden/make.py

Needs torch and transformers, which nothing else here does. For each variant, a folder with `config.json` and
`model.safetensors` as transformers saves them, and `golden.npz`:

  prompt [P, S], prompt_mask [P, S]   prompts, right-padded
  tokens [P, G, T], mask [P, G, T]    completions, right-padded
  logits [P, G, T, V]                 those that predict each token; 0 where the mask is False
  logp [P, G, T]                      log-probability of each token; 0 where the mask is False
  greedy [P, 32]                      what `generate` continues the prompts with
  margin []                           the smallest distance of a greedy token's logit from the next best
  gradient/NAME                       of the mean log-probability, with respect to the checkpoint's tensor NAME
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
from variants import SHAPE, VARIANTS

HERE = Path(__file__).parent
PROMPTS, COMPLETIONS, GREEDY = (7, 2, 10), ((9, 5), (12, 1), (4, 11)), 32
MARGIN = 1e-3
"""No greedy token of a golden file is a nearer choice than this."""


def build(raw, seed):
    """The model of a variant with random weights, in which no bias or scale is 0 or 1."""
    config = transformers.AutoConfig.for_model(**{**SHAPE, **raw})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            centre = 1.0 if "norm" in name and "gemma" not in raw["model_type"] else 0.0
            size = 0.3 if p.ndim == 1 or "embed" in name else 1.2 * p.shape[-1] ** -0.5
            if "embed" in name and "gemma" in raw["model_type"]:
                size /= SHAPE["hidden_size"] ** 0.5  # scaled up by as much: or every token predicts itself
            p.copy_(centre + size * torch.randn(p.shape, generator=random))
        if model.lm_head.weight is not model.model.embed_tokens.weight:
            model.lm_head.weight.mul_(2)
    return model


def texts(seed):
    """Right-padded prompts and completions with their masks; padding holds tokens that must not matter."""
    random = np.random.default_rng(seed)
    prompt = random.integers(3, 48, (len(PROMPTS), max(PROMPTS)))
    prompt_mask = np.arange(max(PROMPTS)) < np.array(PROMPTS)[:, None]
    lengths = np.array(COMPLETIONS)
    tokens = random.integers(3, 48, (*lengths.shape, lengths.max()))
    return prompt, prompt_mask, tokens, np.arange(lengths.max()) < lengths[..., None]


def left_padded(rows):
    """Ids, mask and positions of these texts, padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def scored(model, prompt, prompt_mask, tokens, mask):
    """Logits and log-probs at every completion token, and the gradient of their mean."""
    rows = [
        [*prompt[p][prompt_mask[p]], *tokens[p, g][mask[p, g]]]
        for p in range(len(prompt))
        for g in range(mask.shape[1])
    ]
    out = model(**left_padded(rows)).logits
    logits, logp, total = np.zeros((*tokens.shape, 48), np.float32), np.zeros(tokens.shape, np.float32), 0.0
    for row, (p, g) in enumerate(np.ndindex(*mask.shape[:2])):
        n = mask[p, g].sum()
        z = out[row, -n - 1 : -1]
        chosen = torch.log_softmax(z, -1).gather(1, torch.tensor(tokens[p, g, :n, None]))[:, 0]
        logits[p, g, :n], logp[p, g, :n] = z.detach(), chosen.detach()
        total = total + chosen.sum()
    model.zero_grad()
    (total / mask.sum()).backward()
    gradient = {}
    for name, p in model.named_parameters():
        if name.endswith("experts.gate_up_proj"):  # checkpoints hold the experts one by one
            for i, (gate, up) in enumerate(part.chunk(2) for part in p.grad):
                gradient[name.replace("gate_up_proj", f"{i}.gate_proj.weight")] = gate
                gradient[name.replace("gate_up_proj", f"{i}.up_proj.weight")] = up
        elif name.endswith("experts.down_proj"):
            gradient |= {name.replace("down_proj", f"{i}.down_proj.weight"): g for i, g in enumerate(p.grad)}
        else:
            gradient[name] = p.grad
    return logits, logp, {f"gradient/{name}": g.numpy() for name, g in gradient.items()}


def greedy(model, prompt, prompt_mask):
    """The tokens that `generate` takes, and how clearly it takes them."""
    padded = left_padded([prompt[p][prompt_mask[p]] for p in range(len(prompt))])
    del padded["position_ids"]
    model.generation_config.eos_token_id = None
    out = model.generate(
        **padded, max_new_tokens=GREEDY, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    best = torch.stack(out.logits).topk(2, -1).values
    return out.sequences[:, -GREEDY:].numpy(), float((best[..., 0] - best[..., 1]).min())


def write(name, raw):
    """Writes the folder of one variant, with the first seed whose greedy tokens are no close calls."""
    for seed in range(200):
        model, text = build(raw, seed), texts(seed)
        continued, margin = greedy(model, *text[:2])
        if margin > MARGIN and min(len(set(row)) for row in continued.tolist()) > 5:
            break
    else:
        raise RuntimeError(f"{name}: every seed has a close call or runs in circles")
    logits, logp, gradient = scored(model, *text)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    keys = ("prompt", "prompt_mask", "tokens", "mask", "logits", "logp", "greedy", "margin")
    values = (*text, logits, logp, continued, np.float32(margin))
    np.savez_compressed(folder / "golden.npz", **dict(zip(keys, values, strict=True)), **gradient)
    saved = json.loads((folder / "config.json").read_text())
    print(f"{name}: seed {seed}, margin {margin:.1e}, {saved['architectures'][0]}")


if __name__ == "__main__":
    for name, raw in VARIANTS.items():
        if not sys.argv[1:] or name in sys.argv[1:]:
            write(name, raw)
