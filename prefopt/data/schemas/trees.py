"""Reads conversation trees in which people rank the answers to each message, as Open Assistant does."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from prefopt.data.fields import ROLES, number, shown, string
from prefopt.data.make import ranked
from prefopt.data.record import Message, RowError
from prefopt.data.rows import Row
from prefopt.data.schemas.base import PLACES, Made, Schema, has

TREE = "messages of one tree"


def nested_tree(row: Row) -> list[Made]:
    """A tree as one object, `prompt` with nested `replies`; one list for each turn with ranked answers."""
    return list(_lists(_node(row.get("prompt")), ()))


def tree_messages(row: Row) -> list[Made]:
    """A tree as rows, one message each, joined by `message_tree_id`."""
    nodes: dict[Any, Row] = {}
    made: list[Made] = []
    for i, message in enumerate(row[TREE]):
        name = _id(message, "message_id")
        if name is None or name in nodes:
            reason = "no 'message_id'" if name is None else f"the 'message_id' {shown(name)} of an earlier message"
            made.append(RowError("broken_tree", f"the message has {reason}", rows=1, member=i))
            continue
        nodes[name] = {**message, "replies": []}
    roots = []
    for node in nodes.values():
        parent = _id(node, "parent_id")
        if parent is None:
            roots.append(node)
        elif parent in nodes:
            nodes[parent]["replies"].append(node)
        else:
            message = shown(node.get("message_id"))
            raise RowError("broken_tree", f"message {message} answers {shown(parent)}, which is missing")
    if len(roots) != 1:
        raise RowError("broken_tree", f"the tree has {len(roots)} first messages instead of one")
    found = list(_lists(roots[0], ()))
    used = _used(roots[0])
    if not used:
        return [*made, *found]
    if rest := len(nodes) - len(used):
        errors = [error for error in found if isinstance(error, RowError)]
        for error in errors:
            error.rows = 0
        if errors:
            errors[0].rows = rest
        else:
            left = ", ".join(shown(name) for name in nodes if name not in used)[:200]
            found.append(RowError("not_ranked", f"messages without a rank or outside ranked turns: {left}", rows=rest))
    return [*made, *found]


def _used(node: Row) -> set[Any]:
    """The ids of the messages at and below a node whose text is in a ranked list, as prompt or answer."""
    used: set[Any] = set()
    try:
        replies = [reply for reply in node["replies"] if not reply.get("deleted")]
        answers = [reply for reply in replies if ROLES.get(str(reply.get("role")).lower()) == "assistant"]
        known = [reply for reply in answers if _rank(reply) is not None]
        is_user = ROLES.get(str(node.get("role")).lower()) == "user"
        if is_user and len(known) >= 2 and all(isinstance(reply.get("text"), str) for reply in known):
            used |= {reply["message_id"] for reply in known}
    except RowError:
        return used
    for reply in replies:
        used |= _used(reply)
    return used | {node["message_id"]} if used else used


def one_tree(rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """Join the successive messages of a tree into one row."""
    for _, group in groupby(rows, key=lambda found: found[1].get("message_tree_id")):
        together = list(group)
        yield together[0][0], {TREE: [row for _, row in together], PLACES: [place for place, _ in together]}


def _lists(node: Row, before: tuple[Message, ...]) -> Iterator[Made]:
    """The ranked lists at and below a node; rank 0 is the best, and answers without a rank are left out."""
    try:
        turn = _turn(node)
        listed = node.get("replies") or []
        if not isinstance(listed, list):
            raise RowError("wrong_type", f"'replies' must be a list of messages, not {type(listed).__name__}")
        replies = [_node(reply) for reply in listed if not _node(reply).get("deleted")]
    except RowError as error:
        yield error
        return
    here = (*before, turn)
    answers = [reply for reply in replies if ROLES.get(str(reply.get("role")).lower()) == "assistant"]
    if answers and turn["role"] == "user":
        ranks = [(reply, _rank(reply)) for reply in answers]
        known = [(reply, rank) for reply, rank in ranks if rank is not None]
        try:
            if len(known) < 2:
                raise RowError(
                    "too_few_completions", f"only {len(known)} of a turn's {len(answers)} answers are ranked"
                )
            yield ranked(here, [_turn(reply)["content"] for reply, _ in known], [-rank for _, rank in known])
        except RowError as error:
            yield error
    elif not replies and not before:
        yield RowError("too_few_completions", "the first message has no answers")
    for reply in replies:
        yield from _lists(reply, here)


def _turn(node: Row) -> Message:
    role = str(node.get("role")).lower()
    if role not in ROLES:
        raise RowError("unknown_role", f"'role' is {shown(node.get('role'))}; known roles are {sorted(ROLES)}")
    return {"role": ROLES[role], "content": string(node.get("text"), "text")}


def _node(value: Any) -> Row:
    if not isinstance(value, dict):
        raise RowError("wrong_type", f"a message of a tree must be an object, not {type(value).__name__}")
    return value


def _id(message: Row, name: str) -> str | int | float | None:
    value = message.get(name)
    if value is not None and not isinstance(value, str | int | float):
        raise RowError("wrong_type", f"{name!r} must be a name or a number, not {type(value).__name__}")
    return None if value == "" else value  # an empty cell of a CSV file


def _rank(reply: Row) -> float | None:
    rank = reply.get("rank")
    if rank is None or rank == "" or (isinstance(rank, float) and rank != rank):
        return None
    if isinstance(rank, bool) or not isinstance(rank, int | float | str):
        raise RowError("wrong_type", f"'rank' must be a number, not {shown(rank)}")
    return number(rank, "rank")


SCHEMAS = [
    Schema(
        name="nested_tree", columns="message_tree_id, prompt: {text, role, replies: [{text, role, rank, ...}]}",
        read=nested_tree, matches=lambda row: isinstance(row.get("prompt"), dict) and "replies" in row["prompt"],
    ),
    Schema(
        name="tree_messages", columns="message_id, parent_id, message_tree_id, text, role, rank", read=tree_messages,
        matches=lambda row: has(row, "message_id", "message_tree_id", "text", "role"), gather=one_tree,
    ),
]  # fmt: skip
