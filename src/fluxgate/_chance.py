"""The one source of chance for permits and jitter: `random.random`, looked up when asked, so that seeding works."""


def chance() -> float:
    """A number from 0 up to 1."""
    import random  # here, since it costs `import fluxgate` several milliseconds and a closed circuit never needs it

    return random.random()
