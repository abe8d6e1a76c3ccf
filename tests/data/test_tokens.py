"""From documents to tokens, blocks and tasks."""

import copy

import numpy as np
import pandas
import pytest
import yaml
from test_data import TEXTS, data, japanese, write

from featkd import spec
from featkd.data import corpus, tasks, tokens
from featkd.errors import InputError


def read(file):
    return pandas.read_parquet(file).to_dict("records")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A corpus with prompts and labels, and a tokenizer trained on it."""
    folder = tmp_path_factory.mktemp("prepared")
    rows = [{"q": f"Question {n}?", "a": text, "k": ["red", "blue"][n % 2]} for n, text in enumerate(TEXTS)]
    source = data(
        write(folder, "a.jsonl", rows), prompt_field="q", response_field="a", label_field="k", label_prompt="\nKind:"
    )
    corpus.build(source, folder)
    tokens.train_tokenizer(folder, 400, source.label_prompt, 64, folder / "tok")
    return folder, source, tokens.load_tokenizer(folder / "tok")


def test_blocks_hold_the_documents_and_learn_responses_alone(prepared, tmp_path):
    folder, source, tokenizer = prepared
    meta = tokens.pack(folder, tokenizer, source, 32, tmp_path)
    ids, labels, positions = np.load(tmp_path / "train.npy")
    assert ids.shape == labels.shape == positions.shape == (meta["training_blocks"], 32)
    stream, learned = ids.ravel(), labels.ravel()
    first = corpus.documents(folder, "train")[0]
    text = tokenizer.decode(stream[: list(stream).index(tokenizer.eos_token_id)])
    assert text == f"{first['prompt']}\n{first['text']}\nKind: {first['label']}"
    prompt_length = len(tokens.encode(tokenizer, [first["prompt"]])[0])
    assert (learned[:prompt_length] == tokens.IGNORED).all()
    assert learned[prompt_length] == stream[prompt_length]
    kept = learned != tokens.IGNORED
    assert (learned[kept] == stream[kept]).all()


def test_a_corpus_shorter_than_one_block_is_refused(prepared, tmp_path):
    folder, source, tokenizer = prepared
    with pytest.raises(InputError, match="shorter than one block"):
        tokens.pack(folder, tokenizer, source, 1_000_000, tmp_path)


def test_prompts_are_written_in_the_tokenizers_chat_template(prepared):
    _, source, tokenizer = prepared
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{{ '<assistant>\n' }}"
    row = {"prompt": "Why?", "text": "Because."}
    assert tokens.context_and_text(chatty, row, source) == ("<user>Why?\n<assistant>", "\nBecause.")
    plain = source.model_copy(update={"prompt_format": "plain"})
    assert tokens.context_and_text(chatty, row, plain) == ("Why?", "\nBecause.")
    assert tokens.context_and_text(tokenizer, row, source) == ("Why?", "\nBecause.")
    assert tokens.context_and_text(chatty, row | {"prompt": ""}, source) == ("", "Because.")
    with pytest.raises(InputError, match="no chat template; write plain"):
        tokens.context_and_text(tokenizer, row, source.model_copy(update={"prompt_format": "chat"}))


def test_chat_templates_are_repeatable_and_end_the_turn(prepared, tmp_path):
    folder, source, tokenizer = prepared
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = (
        "{% for m in messages %}{{ '<' + m.role + ' ' + strftime_now('%Y') + '>' + m.content + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    assert "<user 2024>Why?" in tokens.context_and_text(chatty, {"prompt": "Why?", "text": ""}, source)[0]
    tokens.pack(folder, chatty, source, 32, tmp_path)
    ids, labels, positions = np.load(tmp_path / "train.npy").reshape(3, -1)
    text = chatty.decode(ids[labels != tokens.IGNORED])
    assert text.count("<end><|endoftext|>") == text.count("<|endoftext|>") > 100
    assert all(chatty.decode(ids[start : start + 20]).startswith("<user 2024>") for start in inside(positions, 32))
    chatty.chat_template = "{{ raise_exception('no user may speak') }}"
    with pytest.raises(InputError, match="the chat template fails .*no user may speak.*write plain"):
        tokens.context_and_text(chatty, {"prompt": "Why?", "text": ""}, source)


def test_texts_after_a_context_have_the_tokens_that_lm_eval_scores():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()  # as SentencePiece: a space before whatever it is given
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ((context, text),) = tokens.encode_pairs(tokenizer, [("the model", "returns")])
    assert context + text == tokens.encode(tokenizer, ["the modelreturns"])[0]
    assert text != tokens.encode(tokenizer, ["returns"])[0]


def test_documents_begin_with_the_begin_token_of_tokenizers_that_set_one(prepared, tmp_path):
    from tokenizers.processors import TemplateProcessing

    folder, source, tokenizer = prepared
    begins = copy.deepcopy(tokenizer)
    begins.add_special_tokens({"bos_token": "<s>"})
    begins.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begins.bos_token_id)]
    )
    assert tokens.beginning(tokenizer, []) == tokens.beginning(tokenizer, [5]) == []
    assert tokens.beginning(begins, []) == [begins.bos_token_id]
    tokens.pack(folder, begins, source, 32, tmp_path)
    ids, labels, positions = np.load(tmp_path / "train.npy").reshape(3, -1)
    ends = np.flatnonzero(ids[:-1] == begins.eos_token_id)
    assert ids[0] == begins.bos_token_id and (ids[ends + 1] == begins.bos_token_id).all()
    assert (labels[ids == begins.bos_token_id] == tokens.IGNORED).all()
    assert (positions[ids == begins.bos_token_id] == 0).all()
    assert (ids[inside(positions, 32)] == begins.bos_token_id).all()


def inside(positions, block):
    """Where positions of blocks, one after the other, begin anew inside a block."""
    places = np.arange(len(positions))
    starts = places[(positions == 0) & (places % block > 0)]
    assert len(starts) > 50
    for start in [*starts, *range(0, len(positions), block)]:
        end = min(start // block * block + block, *starts[starts > start][:1], len(positions))
        assert (positions[start:end] == np.arange(end - start)).all(), "they count on, and to the block's end at most"
    return starts


def segments(part):
    """(ids, ids of them that are learned from within) of each text that a model sees alone in blocks [3, blocks, n]."""
    for ids, labels, positions in part.transpose(1, 0, 2):
        bounds = [*np.flatnonzero(positions == 0), len(ids)]
        for start, end in zip(bounds, bounds[1:], strict=False):
            kept = labels[start + 1 : end] != tokens.IGNORED
            yield list(ids[start:end]), list(ids[start + 1 : end][kept])


def packed(tmp_path, tokenizer, texts, block, **changes):
    source = data(write(tmp_path, "a.jsonl", [{"text": text} for text in texts]), **changes)
    corpus.build(source, tmp_path)
    tokens.pack(tmp_path, tokenizer, source, block, tmp_path)
    written = {tuple(tokens.encode(tokenizer, [row["text"]])[0]) for row in corpus.documents(tmp_path, "train")}
    return np.load(tmp_path / "train.npy"), written


def test_plain_text_stands_behind_the_end_token_and_nothing_else_as_lm_eval_scores_it(prepared, tmp_path):
    tokenizer, end = prepared[2], prepared[2].eos_token_id
    part, written = packed(tmp_path, tokenizer, [text[:60] for text in TEXTS], 64)
    whole = [
        (ids, learned) for ids, learned in segments(part) if ids[0] == end and ids[1:] and tuple(ids[1:]) in written
    ]
    assert len(whole) > 50
    assert all(learned == ids[1:] for ids, learned in whole)
    ends = part[0].ravel() == end
    assert (part[2].ravel()[ends] == 0).all() and (part[1].ravel()[ends] == end).all(), "learned of the one before it"


def test_a_document_longer_than_a_block_goes_on_in_the_next(prepared, tmp_path):
    tokenizer, end = prepared[2], prepared[2].eos_token_id
    (ids, labels, positions), _ = packed(tmp_path, tokenizer, TEXTS, 16)
    assert (labels[:, 1:] == ids[:, 1:]).all()
    assert (positions[:, 0] == 0).all()
    goes_on = (ids[:, 1:] != end).all(axis=1)
    assert goes_on.sum() > 50 and (positions[goes_on] == np.arange(16)).all()


def test_in_a_block_as_a_whole_positions_count_through(prepared, tmp_path):
    alone, _ = packed(tmp_path, prepared[2], TEXTS, 64)
    whole, _ = packed(tmp_path, prepared[2], TEXTS, 64, attention="block")
    assert (whole[0] == alone[0]).all() and (whole[1, :, 1:] == alone[1, :, 1:]).all()
    assert (whole[2] == np.arange(64)).all() and (alone[2] != whole[2]).any()


def test_what_no_token_of_its_own_document_predicts_is_not_learned(prepared, tmp_path):
    """A tokenizer with neither a begin nor an end token."""
    bare = copy.deepcopy(prepared[2])
    bare.bos_token = bare.eos_token = None
    part, written = packed(tmp_path, bare, [text[:60] for text in TEXTS], 64)
    starts = part[2][:, 1:] == 0
    assert starts.sum() > 50 and (part[1][:, 1:][starts] == tokens.IGNORED).all()
    assert sum(tuple(ids) in written for ids, _ in segments(part)) > 50


def test_a_prompt_begins_without_the_end_token_of_the_document_before(prepared, tmp_path):
    folder, source, tokenizer = prepared
    tokens.pack(folder, tokenizer, source, 256, tmp_path)
    part = np.load(tmp_path / "train.npy")
    prompts = {f"Question {n}?" for n in range(200)}
    found = [(tokenizer.decode(ids), tokenizer.decode(learned)) for ids, learned in segments(part)]
    whole = [
        (text, learned) for text, learned in found if text.startswith("Question") and text.endswith("<|endoftext|>")
    ]
    assert len(whole) > 20
    assert all(text.removesuffix(learned) in prompts for text, learned in whole)


@pytest.mark.parametrize("text", [TEXTS[0], japanese(1), "a" * 300, "🙂é" * 40])
@pytest.mark.parametrize("most", [1, 7, 30, 1000])
def test_texts_are_cut_by_tokens_and_never_inside_a_character(prepared, text, most):
    tokenizer = prepared[2]
    for part, found in [
        (tokens.head(tokenizer, text, most), text.startswith),
        (tokens.tail(tokenizer, text, most), text.endswith),
    ]:
        assert found(part)
        assert len(tokens.encode(tokenizer, [part])[0]) <= most
        assert part == text or len(tokens.encode(tokenizer, [part])[0]) >= most - 3


def test_the_same_text_gives_the_same_tokenizer(prepared, tmp_path):
    folder, source, _ = prepared
    tokens.train_tokenizer(folder, 400, source.label_prompt, 64, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tok" / "tokenizer.json").read_bytes()


def test_tasks_are_real_lm_eval_tasks_from_held_out_documents(prepared, tmp_path):
    folder, source, tokenizer = prepared
    names = ["heldout_perplexity", "heldout_continuation", "heldout_routing"]
    quality = spec.Quality(tasks=names, max_examples=20, context_tokens=8, continuation_tokens=6)
    unigram = tokens.unigram_log_probabilities(np.zeros(10, dtype=np.int32), len(tokenizer))
    assert np.exp(unigram).sum() == pytest.approx(1)
    meta = tasks.build(folder, tokenizer, unigram, source, quality, 64, tmp_path)
    assert meta["chance"]["heldout_continuation"] == 0.25
    assert meta["chance"]["heldout_routing"] == 0.5
    held_out = " ".join(row["text"] for row in corpus.documents(folder, "test"))
    for name in names:
        rows = read(tmp_path / f"{name}.parquet")
        assert len(rows) == meta["examples"][name] == 20
        assert yaml.safe_load((tmp_path / f"{name}.yaml").read_text())["task"] == name
    for row in read(tmp_path / "heldout_continuation.parquet"):
        assert len(set(row["choices"])) == 4
        assert row["choices"][row["gold"]].strip() in held_out
    rows = read(tmp_path / "heldout_perplexity.parquet")
    assert all(row["context"].startswith("Question") and row["text"].startswith("\n") for row in rows)
    assert [row["tokens"] for row in rows] == [len(ids) for ids in tokens.encode(tokenizer, [r["text"] for r in rows])]


def test_a_passage_goes_on_between_words_and_japanese_between_characters(prepared, tmp_path):
    tokenizer = prepared[2]
    quality = spec.Quality(tasks=["heldout_continuation"], context_tokens=20, continuation_tokens=9)
    for texts in (TEXTS, [japanese(n) for n in range(200)]):
        source = data(write(tmp_path, "a.jsonl", [{"text": text} for text in texts]))
        corpus.build(source, tmp_path)
        tasks.build(tmp_path, tokenizer, np.zeros(len(tokenizer)), source, quality, 64, tmp_path)
        rows = read(tmp_path / "heldout_continuation.parquet")
        assert len(rows) > 8
        for row in rows:
            whole = row["context"] + row["choices"][row["gold"]]
            assert any(text.startswith(whole) for text in texts)
            assert texts is not TEXTS or row["choices"][row["gold"]].startswith(" ")


def test_an_unknown_made_task_is_refused(prepared, tmp_path):
    folder, source, tokenizer = prepared
    with pytest.raises(InputError, match="made from your data are heldout_perplexity"):
        tasks.build(folder, tokenizer, np.zeros(1), source, spec.Quality(tasks=["heldout_typo"]), 64, tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match="no usable tokenizer") as raised:
        tokens.load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)
