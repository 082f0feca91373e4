"""Reads the verdicts of judges on two answers, and refuses codes whose meaning no name or documentation fixes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.data.data_config import SIDES
from prefopt.data.fields import LABEL_COLUMNS, code_of, number, plain, shown
from prefopt.data.record import RowError
from prefopt.data.rows import Row
from prefopt.data.schemas.base import has
from prefopt.errors import UserError

INDEX_COLUMNS = ("better_response_id", "choice")  # 0 is the first answer, 1 the second
STRENGTH_COLUMNS = ("preference_strength", "overall_preference")  # below 0: the first is better, above: the second
VERDICT_COLUMNS = ("winner", "preference", "verdict", "label", "labels", "votes", "annotations", "preferred")
WORDS = {
    "first": "first", "a": "first", "model_a": "first", "response_a": "first", "answer_a": "first", "left": "first",
    "second": "second", "b": "second", "model_b": "second", "response_b": "second", "answer_b": "second",
    "right": "second", "tie": "tie", "both": "tie", "equal": "tie", "draw": "tie", "c": "tie", "same": "tie",
    "neither": "tie", "tie_(bothbad)": "tie", "bothbad": "tie",
}  # fmt: skip
COMPARISONS = {
    "a>b": "first", "a>>b": "first", "b<a": "first", "b<<a": "first", "b>a": "second", "b>>a": "second",
    "a<b": "second", "a<<b": "second", "a=b": "tie", "b=a": "tie", "a~b": "tie", "a~=b": "tie", "b~=a": "tie",
}  # fmt: skip
PANDA_CODES = {"0": "tie", "1": "first", "2": "second", "1.5": "tie"}  # PandaLM and AlpacaFarm document these
LARGEST_CODE = 10  # a larger number is no verdict, only a bad row
ONE_SIDED = 10  # rows after which a code for one side, without one for the other, is doubted
ONE_OR_TWO = (
    ": then 1 may be the first answer or the second; say which with "
    "'data.verdicts={1: first, 2: second}' or 'data.verdicts={0: first, 1: second, 2: tie}'"
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The shares of the two answers in the votes, and the code that the row had for it."""

    first: float
    second: float
    code: str  # "winner=model_a"; the column alone where the codes are numbers on a scale
    column: str
    shares: bool = False  # whether the two numbers are shares of votes, which sum to 1

    @property
    def side(self) -> str:
        """first, second or tie."""
        return "tie" if self.first == self.second else "first" if self.first > self.second else "second"


def verdict(row: Row, answers: tuple[str, str] = ("", "")) -> Verdict:
    """The verdict of a row on the answers in these columns; a tie gives half to each.

    Raises:
        RowError: no verdict, or one that says nothing.
        UserError: a number that could mean either side, or two columns that contradict each other; the message gives
            the option that decides.
    """
    found = [_scaled(row, column) for column in (*STRENGTH_COLUMNS, *INDEX_COLUMNS) if has(row, column)]
    if not found and answers == ("output_1", "output_2") and _is_number(row.get("preference")):
        found = [_alpaca(number(row["preference"], "preference"))]
    for name, (columns, votes) in _votes(row).items():
        if not found or all(_known(vote, answers) for vote in votes):
            found.append(_counted(name, votes, answers))
            for column in columns:
                row.get(column)  # notes it as read
    if not found:
        raise RowError("missing_field", f"the row has no verdict in any of {', '.join(VERDICT_COLUMNS)}")
    for other in found[1:]:
        if other.side != found[0].side:
            raise UserError(
                f"{found[0].code} means that {_means(found[0])} and {other.code} that {_means(other)}: choose which "
                f"column decides, by data.ignore=[{other.column}] or data.ignore=[{found[0].column}]"
            )
    return found[0]


def check_codes(counts: Mapping[str, int]) -> None:
    """Refuse codes that are ambiguous beside the others in the data.

    Raises:
        UserError: the numbers of a column do not fit the scale on which they were read.
    """
    found = {name.split("/")[1]: count for name, count in counts.items() if name.startswith("verdict/")}
    unknown = {name.removeprefix("unknown_code/") for name in counts if name.startswith("unknown_code/")}
    for column in LABEL_COLUMNS:
        codes = [code for code in ("-1", "0", "1") if f"{column}={code}" in found]
        strange = sorted(name.partition("=")[2] for name in unknown if name.startswith(f"{column}="))
        if (codes and strange) or {"-1", "0"} <= set(codes):
            raise UserError(
                f"the labels {column!r} are the numbers {', '.join([*codes, *strange])}: {codes[-1]} may mean good or "
                "bad there; give each code a meaning, such as 'data.verdicts={1: undesirable, 5: desirable}'"
            )
    for column in STRENGTH_COLUMNS:
        if found.get(f"{column}>0", 0) >= ONE_SIDED and f"{column}<0" not in found:
            raise UserError(
                f"{column!r} is never below 0 in {found[f'{column}>0']} rows: a scale from 0 or 1 does not say which "
                "answer is better; give each code a meaning, such as 'data.verdicts={1: first, 2: tie, 3: second}'"
            )
    for column in INDEX_COLUMNS:
        if found.get(f"{column}=1", 0) >= ONE_SIDED and f"{column}=0" not in found:
            raise UserError(f"{column!r} is 1 in all {found[f'{column}=1']} rows{ONE_OR_TWO}")


def _scaled(row: Row, column: str) -> Verdict:
    """The verdict of a column whose numbers have a documented meaning; also in words."""
    value = row[column]
    if isinstance(value, str) and not _is_number(value):
        return _counted(column, [value], ("", ""))
    if column in INDEX_COLUMNS:
        return _index(value, column)
    strength = number(value, column)
    return Verdict(
        first=max(-strength, 0.0), second=max(strength, 0.0), code=f"{column}{_sign(strength)}0", column=column
    )


def _counted(name: str, votes: list[Any], answers: Sequence[str]) -> Verdict:
    """The shares of the votes in a column, or of several judges."""
    sides = [_side(vote, name, answers) for vote in votes]
    first, second = (sides.count(side) + sides.count("tie") / 2 for side in ("first", "second"))
    code = f"{name}={shown(votes[0])}" if len(votes) == 1 else f"{len(votes)} votes"
    return Verdict(first=first / len(votes), second=second / len(votes), code=code, column=name, shares=True)


def _means(found: Verdict) -> str:
    return "it is a tie" if found.side == "tie" else f"the {found.side} is better"


def has_verdict(row: Row) -> bool:
    """Whether the row has a column of verdicts."""
    flagged = has(row, "winner_tie") or any(_is_annotator(name) and row[name] is not None for name in row)
    return flagged or any(has(row, name) for name in (*VERDICT_COLUMNS, *INDEX_COLUMNS, *STRENGTH_COLUMNS))


def decode(row: Row, meanings: Mapping[str, str]) -> Row:
    """The row with its verdicts in the words of `data.verdicts`, code -> first, second or tie."""
    columns = (*VERDICT_COLUMNS, *INDEX_COLUMNS, *STRENGTH_COLUMNS, *LABEL_COLUMNS)
    return {
        name: _decoded(value, meanings) if name in columns or _is_annotator(name) else value
        for name, value in row.items()
    }


def _decoded(value: Any, meanings: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_decoded(one, meanings) for one in value]
    return meanings.get(code_of(value), value)


def _index(value: Any, column: str) -> Verdict:
    index = number(value, column)
    if index == 2.0:
        raise UserError(f"{column!r} is 2 in a row{ONE_OR_TWO}")
    if index not in (0.0, 1.0):
        raise RowError("bad_label", f"{column!r} must be 0 or 1, not {index:g}")
    return Verdict(first=1 - index, second=index, code=f"{column}={index:g}", column=column, shares=True)


def _alpaca(preference: float) -> Verdict:
    """AlpacaEval's preference for output_2, from 1 (none) to 2 (certain)."""
    if not 1.0 <= preference <= 2.0 and abs(preference) <= LARGEST_CODE:
        raise _ambiguous("preference", plain(preference))
    if not 1.0 <= preference <= 2.0:
        raise RowError("bad_label", f"'preference' of output_1 and output_2 must be from 1 to 2, not {preference:g}")
    code = f"preference={preference:g}" if preference in (1.0, 1.5, 2.0) else f"preference{_sign(preference - 1.5)}1.5"
    return Verdict(first=2 - preference, second=preference - 1, code=code, column="preference", shares=True)


def _votes(row: Row) -> dict[str, tuple[list[str], list[Any]]]:
    """The votes of each column, with its name; those of several judges are together."""
    found: dict[str, tuple[list[str], list[Any]]] = {}
    for name, value in row.items():
        if (name in VERDICT_COLUMNS or _is_annotator(name)) and value not in (None, []):
            into = next((other for other in found if _is_annotator(other)), name) if _is_annotator(name) else name
            columns, votes = found.setdefault(into, ([], []))
            columns.append(name)
            votes += value if isinstance(value, list) else [value]
    flags = {"winner_tie": "tie", "winner_model_a": "first", "winner_model_b": "second"}
    if any(has(row, column) for column in flags):
        chosen = [side for column, side in flags.items() if code_of(dict.get(row, column)) in ("1", "true")]
        found["winner_*"] = list(flags), [chosen[0] if len(chosen) == 1 else None]
    return found


def _is_annotator(name: str) -> bool:
    return name.startswith(("annotator", "judge_")) and name[-1].isdigit()


def _known(value: Any, answers: Sequence[str]) -> str | None:
    """The side that a verdict in words names."""
    word = re.sub(r"[\s-]+", "_", code_of(value).lower().strip("[]")) if not isinstance(value, bool) else ""
    own = [re.sub(r"[\s-]+", "_", column.lower()) for column in answers]
    if word and word in own:
        return SIDES[own.index(word)]
    return WORDS.get(word) or COMPARISONS.get(word.replace("_", ""))


def _side(value: Any, name: str, answers: Sequence[str]) -> str:
    if found := _known(value, answers):
        return found
    code = code_of(value)
    if name.startswith("annotator") and code in PANDA_CODES:
        return PANDA_CODES[code]
    if _is_number(value) and abs(float(value)) <= LARGEST_CODE:
        raise _ambiguous(name, code)
    raise RowError(
        "bad_label",
        f"{name!r} must be first, second or tie (A, B, tie, A>B), not {shown(value)}; give its codes' meaning with "
        "'data.verdicts={CODE: first, CODE: second, CODE: tie}'",
    )


def _ambiguous(name: str, code: str) -> UserError:
    if code in ("0", "1", "2"):
        return UserError(
            f"the verdict {name!r} is the number {code}, whose meaning differs between data sets: choose "
            "'data.verdicts={0: first, 1: second, 2: tie}' or 'data.verdicts={1: first, 2: second, 0: tie}'"
            f" (or 'data.verdicts={{1: first, 0: second}}' if 1 in {name!r} means that the first is better)"
        )
    return UserError(
        f"the verdict {name!r} is the number {code}, whose scale prefopt does not know: if numbers below 0 prefer the "
        f"first answer and those above 0 the second, map it with 'data.fields={{preference_strength: {name}}}'; else "
        "give each code a meaning, such as 'data.verdicts={1: first, 1.5: tie, 2: second}'"
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"[+-]?\d+(\.\d*)?", value.strip()) is not None
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) < 1e9


def _sign(value: float) -> str:
    return "<" if value < 0 else ">" if value > 0 else "="
