"""A task of one's own, as any module can offer it: `data.source=tests.data.counting:COUNTING`."""

from grpo_jax.data import Dataset, Source


def read(settings, seed):
    rows = [{"prompt": f"{i}+{seed}=", "answer": str(i + seed)} for i in range(settings.train_size)]
    return Dataset(tuple(rows)), Dataset(tuple(rows[: settings.test_size]))


def check(settings):
    if settings.digits != 1:
        yield f"data.digits: value {settings.digits}; expected 1, because counting has no more; drop it"


def demonstrate(data, rows, *, seed, wrong):
    return [data.rows[i]["answer"] for i in rows]


def exact(prompts, completions, answer, **_):
    return [float(text == a) for text, a in zip(completions, answer, strict=True)]


COUNTING = Source(read=read, check=check, demonstrate=demonstrate, rewards={"exact": exact}, alphabet="0123456789+=")
NOT_ONE = object()
