"""The share of a text's 8-grams that stand in the training text, against counting by hand."""

import pytest

from featkd.data import ngrams

WORDS = [f"w{n}" for n in range(100)]


def text(*parts):
    return " ".join(WORDS[n] for part in parts for n in part)


@pytest.mark.parametrize(
    ("asked", "share"),
    [
        (text(range(10, 30)), 1.0),  # 13 runs of 8, all there
        (text(range(10, 20), range(50, 60)), 3 / 13),  # three before the seam, none over it, none of the others
        (text(range(50, 80)), 0.0),
        (text(range(30, 10, -1)), 0.0),
        ("", 0.0),
    ],
)
def test_runs_are_found_inside_documents(asked, share):
    assert ngrams.shares([asked.upper()], [text(range(40)), "something else"]) == [pytest.approx(share)]


def test_punctuation_between_words_is_part_of_them_and_white_space_is_not():
    assert ngrams.shares([text(range(9)).replace(" ", "\n")], [text(range(40))]) == [1.0]
    assert ngrams.shares([text(range(9)).replace(" ", ", ")], [text(range(40))]) == [0.0]


def test_a_form_is_not_counted():
    form = text(range(12))
    training = [f"{form} {text(range(20 + n, 40 + n))}" for n in range(20)]
    seen, new, nothing_else = ngrams.shares(
        [training[3], f"{form} {text(range(99, 79, -1))}", form], training
    )  # fmt: skip
    assert seen == 1.0 and new == 0.0 and nothing_else == 1.0
