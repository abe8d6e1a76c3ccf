"""Vocabularies that differ by padding alone, and those that really differ."""

import pytest
import tiny_models
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from featkd.align.head import OnlineTeacher, fused_loss
from featkd.align.output import Head
from featkd.align.vocabulary import PROBES, shared_vocabulary
from featkd.errors import InputError


def tokenizer(vocabulary=400, added=()):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    options = {"vocab_size": vocabulary, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    made.train_from_iterator([*PROBES, tiny_models.text(0, 500)], trainers.BpeTrainer(**options, show_progress=False))
    found = PreTrainedTokenizerFast(tokenizer_object=made)
    found.add_tokens(list(added))
    return found


def test_padding_is_cut_off():
    plain, more = tokenizer(), tokenizer(added=["<|tool|>"])
    assert shared_vocabulary(plain, plain, 448, 512) == shared_vocabulary(plain, plain, 512, 448) == 448
    assert shared_vocabulary(plain, more, 401, 512) == 401, "a token that only one of them has, and that has a row"


def test_other_tokenizers_are_refused_with_what_to_do():
    with pytest.raises(InputError, match="to the student's tokenizer and .* take a student of the teacher's family"):
        shared_vocabulary(tokenizer(300), tokenizer(), 512, 512)
    with pytest.raises(InputError, match="up to 401 tokens and the models only 400 rows in common"):
        shared_vocabulary(tokenizer(), tokenizer(added=["<|tool|>"]), 400, 512)


def test_rows_that_are_padding_take_no_part():
    """Where a peer pads the shorter logits with zeros, the padding takes nearly all of a low softmax."""
    states, wide = torch.randn(5, 8), torch.randn(30, 8)
    weight, targets = torch.randn(34, 8, requires_grad=True), torch.arange(5)
    teacher = OnlineTeacher(torch.randn(5, 8), Head(wide))
    low = Head(weight[:30], bias=torch.full((30,), -20.0))
    loss = fused_loss(states, low, targets, teacher)
    same = fused_loss(states, Head(weight[:30]), targets, teacher)
    assert float(loss.detach()) == pytest.approx(float(same.detach()), rel=1e-4)
    loss.backward()
    assert weight.grad[30:].abs().max() == 0 and weight.grad[:30].abs().max() > 0
