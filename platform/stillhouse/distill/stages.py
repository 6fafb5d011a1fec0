"""How methods share a training's epochs out: two stages, generations."""

from stillhouse.distill.method import MethodError, Stage


def epochs_of_first_stage(epochs: int, share: float) -> int:
    """How many of `epochs` the first of two stages takes: the share, and at least one for each of them.

    Raises:
        MethodError: there is only one.
    """
    if epochs < 2:
        raise MethodError(f"needs an epoch for each of its 2 stages, has {epochs}")
    return min(max(round(share * epochs), 1), epochs - 1)


def generations(epochs: int, number: int) -> list[Stage]:
    """`generation_1` and so on with equal shares of the epochs; the last gets what is left over, and it alone is comparable.

    The first generation needs all the method's knowledge, the later ones none.

    Raises:
        MethodError: there are fewer epochs than generations.
    """
    if epochs < number:
        raise MethodError(f"needs at least one epoch for each of its {number} generations, has {epochs}")
    share, rest = divmod(epochs, number)
    return [
        Stage(
            name=f"generation_{each}",
            epochs=share + (rest if each == number else 0),
            comparable=each == number,
            knowledge=None if each == 1 else (),
        )
        for each in range(1, number + 1)
    ]
