"""Reads conversation trees in which people rank the answers to each message, as Open Assistant does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prefopt.data.fields import ROLES, blank, number, shown, string, type_of
from prefopt.data.make import ranked
from prefopt.data.record import Message, RowError
from prefopt.data.row_facts import all_ended
from prefopt.data.rows import Row
from prefopt.data.schemas.base import ENDED_DEFAULT, MEMBERS, PLACES, Made, Schema, has, joined

SHOWN = 10  # messages that are named in an error


@dataclass(eq=False)
class Node:
    """A message of a tree and its replies; `place` is that of its row, nothing where the whole tree is one row."""

    row: Row
    place: str = ""
    name: str | float | None = None
    parent: str | float | None = None
    replies: list[Node] = field(default_factory=list)
    used: bool = False  # in a ranked list, as prompt or answer
    failed: bool = False  # listed with an error of its own

    def fail(self, reason: str, detail: str, rows: int = 1) -> RowError:
        """The error of this message, which accounts for `rows` rows."""
        self.failed = True
        return RowError(reason, detail, rows=rows if self.place else 0, place=self.place)

    def below(self) -> list[Node]:
        """This message and all below it."""
        found = [self]
        for node in found:
            found += node.replies
        return found

    def deleted(self) -> bool:
        """Whether the message is marked as deleted, also in words as in CSV files."""
        return str(self.row.get("deleted")).lower() in ("true", "1")


def nested_tree(row: Row) -> list[Made]:
    """A tree as one object, `prompt` with nested `replies`; one list for each turn with ranked answers."""
    made: list[Made] = []
    try:
        root = _nested(row.get("prompt"), made)
    except RowError as error:
        made.append(error)
    else:
        made += _ranked(root, row[ENDED_DEFAULT])
    if all(isinstance(one, RowError) for one in made):
        made[0].rows = None  # type: ignore[union-attr]  # it accounts for the row, which no list uses
    return made


def _nested(value: Any, broken: list[Made]) -> Node:
    if not isinstance(value, dict):
        raise RowError("wrong_type", f"a message of a tree must be an object, not {type_of(value)}", rows=0)
    node = Node(value, name=value.get("message_id") or shown(value.get("text")))
    replies = value.get("replies") or []
    if not isinstance(replies, list):
        raise RowError("wrong_type", f"'replies' must be a list of messages, not {type_of(replies)}", rows=0)
    for reply in replies:
        try:
            node.replies.append(_nested(reply, broken))
        except RowError as error:
            broken.append(error)
    return node


def tree_messages(row: Row) -> list[Made]:
    """A tree as rows, one message each, joined by `message_tree_id`."""
    nodes: dict[Any, Node] = {}
    broken: list[RowError] = []
    for place, message in zip(row[PLACES], row[MEMBERS], strict=True):
        node = Node(message, place)
        message.get("message_tree_id")  # which joined the rows
        try:
            node.name, node.parent = _id(message, "message_id"), _id(message, "parent_id")
        except RowError as error:
            broken.append(node.fail(error.reason, error.detail))
            continue
        if node.name is None or node.name in nodes:
            what = "no 'message_id'" if node.name is None else f"the 'message_id' {shown(node.name)} of an earlier one"
            broken.append(node.fail("broken_tree", f"the message has {what}"))
            continue
        nodes[node.name] = node
    roots = [node for node in nodes.values() if node.parent is None]
    if len(roots) != 1:
        raise RowError("broken_tree", f"the tree has {len(roots)} first messages instead of one")
    broken += _apart(nodes)
    made = [*broken, *_ranked(roots[0], row[ENDED_DEFAULT])]
    if broken and not roots[0].used:
        raise RowError(broken[0].reason, broken[0].detail)
    return made


def _apart(nodes: dict[Any, Node]) -> Iterator[RowError]:
    """Join the replies to their messages, and list those that do not belong to the tree."""
    orphans = []
    for node in nodes.values():
        if node.parent in nodes:
            nodes[node.parent].replies.append(node)
        elif node.parent is not None:
            orphans.append(node)
    inside = {node for root in nodes.values() if root.parent is None for node in root.below()}
    for orphan in orphans:
        lost = orphan.below()
        more = f", and {len(lost) - 1} more are below it" if len(lost) > 1 else ""
        detail = f"message {shown(orphan.name)} answers {shown(orphan.parent)}, which is missing{more}"
        yield orphan.fail("broken_tree", detail, len(lost))
        inside.update(lost)
    if circle := [node for node in nodes.values() if node not in inside]:
        yield circle[0].fail(
            "broken_tree", f"messages that answer each other in a circle: {_names(circle)}", len(circle)
        )


def one_tree(rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """Join the successive messages of a tree into one row."""
    return joined(rows, lambda row: row.get("message_tree_id"))


def _ranked(root: Node, default: bool) -> list[Made]:
    """The ranked lists of a tree, and errors that account for all messages that are in none of them.

    `default` says whether an answer ends its turn if it does not say so.
    """
    made = list(_lists((root,), (), default))
    left = [node for node in root.below() if not (node.used or node.failed)]
    if deleted := [node for node in left if node.deleted()]:
        made.append(deleted[0].fail("deleted", f"deleted messages: {_names(deleted)}", len(deleted)))
        left = [node for node in left if node not in deleted]
    lists = [error for error in made if isinstance(error, RowError) and error.reason == "too_few_completions"]
    if left and lists and root.place:
        lists[0].rows = len(left)
    elif left and not lists:
        detail = f"messages without a rank or outside ranked turns: {_names(left)}"
        made.append(left[0].fail("not_ranked", detail, len(left)))
    return made


def _lists(path: tuple[Node, ...], before: tuple[Message, ...], default: bool) -> Iterator[Made]:
    """The ranked lists at and below the last message of a path; rank 0 is the best, and only ranked answers count."""
    node = path[-1]
    try:
        here = (*before, _turn(node.row))
    except RowError as error:
        yield node.fail(error.reason, error.detail)
        return
    replies = [reply for reply in node.replies if not reply.deleted()]
    answers = [reply for reply in replies if ROLES.get(str(reply.row.get("role")).lower()) == "assistant"]
    if answers and here[-1]["role"] == "user":
        known = []
        for reply in answers:
            try:
                if (rank := _rank(reply.row)) is not None:
                    known.append((reply, _said(reply.row), rank))
            except RowError as error:
                yield reply.fail(error.reason, error.detail)
        try:
            ended = all_ended((reply.row for reply, *_ in known), default)
            if len(known) < 2:
                where = "; a tree's messages must be successive rows" if node.place else ""
                raise RowError(
                    "too_few_completions", f"only {len(known)} of a turn's {len(answers)} answers are ranked{where}"
                )
            made = ranked(here, [text for _, text, _ in known], [-rank for *_, rank in known])
            made = dataclasses.replace(made, ended=ended)
            for used in (*path, *[reply for reply, *_ in known]):
                used.used = True
            yield made
        except RowError as error:
            yield RowError(error.reason, error.detail, rows=0, place=node.place)
    elif not replies and not before:
        yield RowError("too_few_completions", "the first message has no answers", rows=0, place=node.place)
    for reply in replies:
        if not reply.failed:
            yield from _lists((*path, reply), here, default)


def _said(row: Row) -> str:
    if blank(text := _turn(row)["content"]):
        raise RowError("empty_completion", "the answer is empty or blank")
    return text


def _names(nodes: list[Node]) -> str:
    return ", ".join(shown(node.name) for node in nodes[:SHOWN])[:200]


def _turn(node: Row) -> Message:
    role = str(node.get("role")).lower()
    if role not in ROLES:
        raise RowError("unknown_role", f"'role' is {shown(node.get('role'))}; known roles are {sorted(ROLES)}")
    return {"role": ROLES[role], "content": string(node.get("text"), "text")}


def _id(message: Row, name: str) -> str | int | float | None:
    value = message.get(name)
    if value is not None and not isinstance(value, str | int | float):
        raise RowError("wrong_type", f"{name!r} must be a name or a number, not {type_of(value)}")
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
