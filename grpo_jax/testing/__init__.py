"""Public helpers for tests: a tiny model, a tiny tokenizer, and a float64 oracle."""
