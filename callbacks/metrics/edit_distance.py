"""How many letters have to be changed to make one text of another."""

from collections.abc import Sequence


def edit_distance(read: Sequence[str], text: Sequence[str]) -> int:
    """Return the least number of letters that are put in, taken out or exchanged (Levenshtein).

    Args:
        read: What was read.
        text: What is printed.
    """
    row = list(range(len(text) + 1))
    for place, letter in enumerate(read, 1):
        before, row[0] = row[0], place
        for column, wanted in enumerate(text, 1):
            changed = before + (letter != wanted)
            before = row[column]
            row[column] = min(changed, before + 1, row[column - 1] + 1)
    return row[-1]
