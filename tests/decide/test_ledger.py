"""The chain of decisions: nothing can be changed, left out or put in between without being seen."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from featkd.decide import ledger
from featkd.errors import RunError


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        ledger.append(tmp_path / "ledger", "verdict", "featkd", poc="p", run_id=f"r{number}", note="ä")
    return tmp_path / "ledger"


def files(folder):
    return sorted(folder.glob("*.json"))


def test_records_follow_each_other(folder):
    found = ledger.read(folder)
    assert ledger.verify(found) == [] and [record["number"] for record in found] == [1, 2, 3, 4]
    assert found[0]["previous"] == ledger.FIRST
    assert [record["previous"] for record in found[1:]] == [record["hash"] for record in found[:3]]
    assert all(file.name.startswith(f"{n:08d}-{r['hash'][:12]}") for n, (file, r) in enumerate(
        zip(files(folder), found, strict=True), start=1))  # fmt: skip


def edited(folder, **changes):
    file = files(folder)[1]
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rehashed(folder):
    """A forger who also computes the hash anew is seen at the next record."""
    file = files(folder)[1]
    record = json.loads(file.read_text()) | {"run_id": "forged"}
    file.write_text(json.dumps(record | {"hash": ledger._hash(record)}))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: edited(folder, run_id="other"), "record 2 was changed"),
        (lambda folder: files(folder)[1].unlink(), "record 2 is missing: the next one is 3"),
        (rehashed, "record 3 does not follow record 2"),
        (lambda folder: files(folder)[1].write_text("{"), "record 2: .* cannot be read"),
        (lambda folder: files(folder)[1].write_text("[]"), "record 2: .* is no record"),
    ],
)
def test_harm_is_seen_and_nothing_more_is_added(folder, harm, told):
    harm(folder)
    (problem,) = ledger.verify(ledger.read(folder))
    with pytest.raises(RunError, match=f"ledger .* is broken, nothing is done: {told}"):
        ledger.append(folder, "verdict", "featkd", poc="p", run_id="next")
    assert problem and not any("next" in file.read_text() for file in files(folder))


def test_writers_side_by_side_make_one_chain(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ledger.append(tmp_path / "l", "verdict", "featkd", run_id=n), range(24)))
    found = ledger.read(tmp_path / "l")
    assert ledger.verify(found) == [] and sorted(record["run_id"] for record in found) == list(range(24))
    assert not list((tmp_path / "l").glob(".*"))


def test_a_record_of_another_make_is_no_override(tmp_path):
    ledger.append(tmp_path / "l", "override", "ada", poc="p", note="without a candidate")
    assert ledger.overrides(tmp_path / "l", "p") == []


def test_an_empty_ledger_is_whole(tmp_path):
    assert ledger.verify(ledger.read(tmp_path / "none")) == []
