"""Who served before whom, from the ledger's records of one PoC."""

from featkd.decide.ledger import Record

MOVES = ("promotion", "rollback")


def moves(records: list[Record]) -> list[Record]:
    return [one for one in records if one["kind"] in MOVES]


def before(records: list[Record], artefact: str) -> Record | None:
    """What served before the version of this artefact, as its promotion tells it; of what was taken back since, what
    served before that. None where no promotion of it is on record, or nothing is left."""
    out = _taken_back(records)
    seen = {artefact}
    while promotion := next((one for one in reversed(records) if _promotes(one, artefact)), None):
        found = promotion["replaced"]
        artefact = found["artefact"]
        if artefact not in out:
            return found
        if artefact in seen:
            return None
        seen.add(artefact)
    return None


def service(records: list[Record], artefact: str) -> list[Record]:
    """The records since this artefact last became champion, that one first; all where none is on record."""
    starts = [place for place, one in enumerate(records) if one["kind"] in MOVES and one["artefact"] == artefact]
    return records[starts[-1] :] if starts else records


def audits(records: list[Record], artefact: str, method: str) -> list[Record]:
    """Audits of this service of it, by this method."""
    return [one for one in service(records, artefact)
            if one["kind"] == "audit" and one["artefact"] == artefact and one["method"] == method]  # fmt: skip


def unfinished(records: list[Record], artefact: str) -> Record | None:
    """An alarm that was to take it back and did not: the command was killed, or MLflow did not answer."""
    found = [one for one in service(records, artefact) if one["kind"] == "audit" and one["artefact"] == artefact]
    last = found[-1] if found else None
    return last if last and last["verdict"] == "alarm" and last["settings"]["fail_safe"] != "none" else None


def _promotes(record: Record, artefact: str) -> bool:
    return record["kind"] == "promotion" and record["artefact"] == artefact


def _taken_back(records: list[Record]) -> set[str]:
    out: set[str] = set()
    for one in moves(records):
        out.discard(one["artefact"])
        if one["kind"] == "rollback":
            out.add(one["taken_back"]["artefact"])
    return out
