"""Do two models speak of the same tokens? Output embeddings of one family often differ by padding alone."""

from typing import Any

from featkd.errors import InputError

PROBES = (
    "The quick brown fox jumps over 13 lazy dogs, isn't it?",
    "def area(r: float) -> float:\n    return 3.14159 * r ** 2  # πr²\n",
    "  two  spaces,\ttabs\r\n\n\nand blank lines   ",
    "Zürich, façade, naïve, Ångström, ½ kg – „Zitat“",
    "東京都の人口は約1,400万人です。カタカナとひらがな。",
    "Привет, мир! שלום مرحبا नमस्ते 안녕하세요 你好",
    "🙂👩‍💻 https://example.org/a?b=c&d=%20 2024-01-31T12:00:00Z 1e-7 0xFF",
)


def shared_vocabulary(student: Any, teacher: Any, student_rows: int, teacher_rows: int, field: str = "students") -> int:
    """How many rows of both output embeddings mean the same tokens: the first so many.

    student, teacher: tokenizers; rows: of their models' output embeddings; field: where the spec names the student.
    Tokenizers are compared by what they make of PROBES. Qwen 2.5, for one, has 151,665 tokens in 151,936 or 152,064
    rows, by size of the model.
    Raises InputError where a text is encoded differently, or where a token has no row in one of them.
    """
    for text in PROBES:
        mine, theirs = (tokenizer.encode(text, add_special_tokens=False) for tokenizer in (student, teacher))
        if mine != theirs:
            raise InputError(
                f"{field}: {text[:20]!r}... is {mine[:4]}... to the student's tokenizer and {theirs[:4]}... to the "
                "teacher's; distillation compares token by token: take a student of the teacher's family, or write "
                "layers and hidden_size for one with the teacher's own tokenizer"
            )
    rows, tokens = min(student_rows, teacher_rows), max(len(student), len(teacher))
    if rows < tokens:
        raise InputError(
            f"{field}: the tokenizers have up to {tokens} tokens and the models only {rows} rows in common; "
            "resize the smaller model's embeddings"
        )
    return rows
