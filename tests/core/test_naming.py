from grpo_jax.core import FullVocabulary, Objective, kl_divergence, per_sequence, token_mean


def test_functions_print_by_name_and_never_by_address():
    text = repr(Objective(ratio=per_sequence, aggregate=token_mean, kl=FullVocabulary(kl_divergence)))
    assert "ratio=per_sequence" in text
    assert "aggregate=token_mean" in text
    assert "kl=FullVocabulary(divergence=kl_divergence)" in text
    assert "0x" not in text
