"""Lays records out as rows of the model: trees packed end to end, or padded sequences where trees do not work.

A tree is `[shared prompt | completion 1 | completion 2 | ...]`. Positions restart at the end of the prompt for every
completion, and a completion sees the prompt and itself. The last token of a completion is not fed to the model, because
nothing is predicted from it; only `closing` trees feed it, whose completions are scored at their end (reward models).
Given tokens of a completion (`prefopt.data.tokens`) are fed and never predicted: they are not among the N.

Legend: R rows, L positions of a row, N scored tokens, C completions, G trees of a group, T tokens of its longest tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from prefopt.data.images.inputs import codes_of, has_images
from prefopt.data.tokens import Ids, token_ids

Layout = Literal["tree", "padded"]

# Trees up to this length are attended with one dense mask, several at a time; longer ones piece by piece, which skips
# the half of the prompt's square that causality rules out.
DENSE_TOKENS = 320
# A tree joins a group of longer ones while it fills this share of the group's longest.
FILL = 0.75


@dataclass(frozen=True, eq=False)
class Tree:
    """One prompt and its branches, in tokens; given ones are below 0.

    `closing` branches are fed with their last token, and scored there.
    """

    prompt: Ids
    branches: tuple[Ids, ...]
    closing: bool = False

    @property
    def fed(self) -> list[Ids]:
        """What the model is given of each branch."""
        return [branch if self.closing else branch[:-1] for branch in self.branches]

    @property
    def num_tokens(self) -> int:
        """The positions that the tree takes in a row."""
        return len(self.prompt) + sum(map(len, self.fed))


@dataclass(frozen=True, eq=False)
class Group:
    """Trees of similar length, attended in one call; `index` (G, T) has local positions, -1 where a tree is shorter."""

    length: int  # positions of the row that the group covers
    index: Tensor
    scope: Tensor  # (G, T) branch of each token, 0 for the prompt, -1 for padding
    position: Tensor  # (G, T)

    @cached_property
    def spread(self) -> Tensor:
        """(G * T,) the position that each place of the group takes; padding takes the first."""
        return self.index.clamp(min=0).flatten()

    @cached_property
    def kept(self) -> Tensor:
        """(length,) the place of each position in the group: the inverse of `spread`."""
        return (self.index.flatten() >= 0).nonzero().squeeze(1)

    def mask(self, window: int | None, image: Tensor | None = None) -> Tensor:
        """(G, 1, T, T) bool: the keys that each query sees. Padding sees itself, so that no softmax is empty.

        `image` (length,) is the image of each position that sees all of its image, -1 for none.
        """
        q, k = self.scope[:, :, None], self.scope[:, None, :]
        order = torch.arange(self.scope.shape[1], device=self.scope.device)
        seen = (order[:, None] >= order[None, :]) & ((k == q) | (k == 0)) & (k >= 0) & (q >= 0)
        if image is not None:
            seen |= same_image(image[self.index.clamp(min=0)].masked_fill(self.index < 0, -1))
        if window is not None:
            seen &= self.position[:, :, None] - self.position[:, None, :] < window
        return (seen | (order[:, None] == order[None, :])).unsqueeze(1)


@dataclass(frozen=True, eq=False)
class Piece:
    """A long tree, attended piece by piece: the prompt, then each branch on the prompt and itself."""

    prompt: int
    branches: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.prompt + sum(self.branches)


@dataclass(frozen=True, eq=False)
class TreePlan:
    """How the positions of a row attend to each other: groups and long trees, in the order of the row."""

    parts: tuple[Group | Piece, ...]
    tree: Tensor  # (L,) tree of each position
    scope: Tensor  # (L,) branch of each position within its tree, 0 for the prompt
    position: Tensor  # (L,)
    image: Tensor | None = None  # (L,) image of each position that sees all of its image, ahead too; -1 for none
    masks: dict[tuple[int, int | None, torch.dtype], Tensor] = field(default_factory=dict)
    blocks: dict[int | None, Any] = field(default_factory=dict)  # the same for flex_attention
    windows: set[int | None] = field(default_factory=set)  # of the layers that have used the plan

    def mask(self, part: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """The mask of a group, added to its scores: 0 or -inf; made once for all layers."""
        key = (part, window, dtype)
        if key not in self.masks:
            group = self.parts[part]
            assert isinstance(group, Group)
            start = sum(one.length for one in self.parts[:part])
            seen = group.mask(window, None if self.image is None else self.image[start : start + group.length])
            self.masks[key] = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
        return self.masks[key]


@dataclass(frozen=True, eq=False)
class RowImages:
    """The images of a row, until `prefopt.engine.image_arguments` puts them into it, and after.

    Attributes:
        prompts: for each tree (tree layout) or sequence (padded layout), in the order of the row, its images' codes.
        places: (R, L) bool, where the model puts what it sees.
        inputs: what the model is given beside the token ids, by name; empty until images are put in.
    """

    prompts: tuple[Ids, ...]
    places: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, prompts: Sequence[Ids], places: np.ndarray) -> RowImages | None:
        """The images of prompts; None where they have none."""
        if not any(map(has_images, prompts)):
            return None
        return cls(tuple(map(codes_of, prompts)), torch.from_numpy(np.ascontiguousarray(places)))


@dataclass(frozen=True, eq=False)
class Row:
    """The input of one forward, and what to score in it.

    Attributes:
        input_ids, position_ids: (R, L).
        tree: how positions attend (tree layout, R = 1), or None (padded layout).
        attention_mask: (R, L) in the padded layout, else None.
        source: (N,) flat position in (R, L) whose hidden state predicts the token; of closing trees (C,), the last one
            of each completion.
        target: (N,) token id.
        owner: (N,) completion, 0 to C-1, ascending.
        num_tokens: (C,) those that the data did not give.
        scored: (C,) how many of the N belong to each completion: `num_tokens`, or 1 of closing trees.
        longest: tokens of the longest sequence, its last one included.
        max_id: largest token id.
        images: of the prompts; None where they have none. In their places `input_ids` is 0 until they are put in.
    """

    input_ids: Tensor
    position_ids: Tensor
    tree: TreePlan | None
    attention_mask: Tensor | None
    source: Tensor
    target: Tensor
    owner: Tensor
    num_tokens: Tensor
    scored: Tensor
    longest: int
    max_id: int
    images: RowImages | None = None

    def to(self, device: torch.device | str) -> Row:
        """The same row on another device."""
        if self.input_ids.device == torch.device(device):
            return self

        def move(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            if isinstance(value, Group):
                return Group(value.length, *(getattr(value, n).to(device) for n in ("index", "scope", "position")))
            if isinstance(value, RowImages):
                return RowImages(
                    value.prompts, value.places.to(device), {n: v.to(device) for n, v in value.inputs.items()}
                )
            if isinstance(value, TreePlan):
                parts = tuple(move(p) for p in value.parts)
                moved: list[Any] = [move(getattr(value, n)) for n in ("tree", "scope", "position", "image")]
                return TreePlan(parts, *moved)  # type: ignore[arg-type]
            return value

        return Row(**{name: move(value) for name, value in vars(self).items()})  # type: ignore[arg-type]

    @property
    def tokens_fed(self) -> int:
        """The positions that are computed, padding included."""
        return self.input_ids.numel()


def same_image(image: Tensor) -> Tensor:
    """(..., T, T) bool: positions of one image, from (..., T) images, -1 for none."""
    return (image[..., :, None] == image[..., None, :]) & (image[..., :, None] >= 0)


def lay_out(trees: Sequence[Tree], layout: Layout) -> Row:
    """The row of some trees, all closing or none; completion c of the row is the c-th branch of all."""
    return _tree_row(trees) if layout == "tree" else _padded_row(trees)


def _tree_row(trees: Sequence[Tree]) -> Row:
    sizes = np.array([tree.num_tokens for tree in trees])
    # Longest first: neighbours in the row are then alike, and can be attended together.
    order = np.argsort(-sizes, kind="stable")
    ordered = [trees[i] for i in order]
    # A segment is a prompt, or what is fed of a branch; `number` is 0 for the prompt, b + 1 for branch b.
    segments = [s for tree in ordered for s in (tree.prompt, *tree.fed)]
    length = np.array([len(s) for s in segments])
    start = np.cumsum(length) - length
    branches = np.array([len(tree.branches) for tree in ordered])
    prompt = np.repeat(np.cumsum(branches + 1) - branches - 1, branches + 1)  # each segment's prompt
    number = np.arange(len(segments)) - prompt
    begin = np.where(number > 0, length[prompt], 0)
    position = np.repeat(begin, length) + _count_up(length)
    scope = np.repeat(number, length)
    # Completions in the caller's order: the first token is predicted at the end of the prompt, the rest in the branch.
    completion = np.flatnonzero(number)
    completion = completion[np.argsort(np.repeat(order, branches), kind="stable")]
    end = start + length - 1
    if trees[0].closing:
        source = end[completion]
    else:
        tokens = length[completion] + 1
        step = _count_up(tokens)
        first = np.repeat(end[prompt[completion]], tokens)
        source = np.where(step > 0, np.repeat(start[completion] - 1, tokens) + step, first)
    plan = TreePlan(
        _parts(ordered, scope, position), _long(np.repeat(order, sizes[order])), _long(scope), _long(position)
    )
    ids = np.concatenate(segments)
    places = (ids < 0) & (scope == 0)
    return Row(
        input_ids=_long(np.where(places, 0, token_ids(ids)))[None],
        position_ids=plan.position[None],
        tree=plan,
        attention_mask=None,
        images=RowImages.of([tree.prompt for tree in ordered], places[None]),
        **_targets(trees, source),
    )


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... in each of several runs end to end."""
    counted: np.ndarray = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return counted


def _parts(trees: Sequence[Tree], scope: np.ndarray, position: np.ndarray) -> tuple[Group | Piece, ...]:
    """Cut a row of trees, longest first, into long ones and groups of similar length."""
    parts: list[Group | Piece] = []
    group: list[int] = []
    at = 0

    def close() -> None:
        nonlocal at
        if group:
            stop = at + sum(group)
            parts.append(_group(np.array(group), scope[at:stop], position[at:stop]))
            at = stop
            group.clear()

    for tree in trees:
        size = tree.num_tokens
        if size > DENSE_TOKENS:
            parts.append(Piece(len(tree.prompt), tuple(len(b) for b in tree.fed if len(b))))
            at += size
            continue
        if group and size < FILL * group[0]:
            close()
        group.append(size)
    close()
    return tuple(parts)


def _group(sizes: np.ndarray, scope: np.ndarray, position: np.ndarray) -> Group:
    there = np.arange(sizes[0]) < sizes[:, None]

    def spread(values: np.ndarray, padding: int) -> Tensor:
        spaced = np.full(there.shape, padding)
        spaced[there] = values
        return _long(spaced)

    return Group(len(scope), spread(np.arange(len(scope)), -1), spread(scope, -1), spread(position, 0))


def _padded_row(trees: Sequence[Tree]) -> Row:
    sequences = [np.concatenate((t.prompt, b)) for t in trees for b in t.fed]
    owners = [t for t in trees for _ in t.branches]
    firsts = [len(s) if t.closing else len(t.prompt) for s, t in zip(sequences, owners, strict=True)]
    longest = max(len(s) for s in sequences)
    ids = np.zeros((len(sequences), longest), np.int64)
    mask = np.zeros((len(sequences), longest), np.int64)
    for r, sequence in enumerate(sequences):
        ids[r, : len(sequence)] = sequence
        mask[r, : len(sequence)] = 1
    prompts = np.array([len(t.prompt) for t in owners])
    places = (ids < 0) & (np.arange(longest) < prompts[:, None])
    source = [
        np.arange(r * longest + first - 1, r * longest + len(sequence))
        for r, (sequence, first) in enumerate(zip(sequences, firsts, strict=True))
    ]
    return Row(
        input_ids=_long(np.where(places, 0, token_ids(ids))),
        position_ids=_long(np.broadcast_to(np.arange(longest), ids.shape).copy()),
        tree=None,
        attention_mask=_long(mask),
        images=RowImages.of([t.prompt for t in owners], places),
        **_targets(trees, np.concatenate(source)),
    )


def _targets(trees: Sequence[Tree], source: np.ndarray) -> dict[str, Any]:
    """What to score: of all tokens of the completions, predicted at `source`, the trained ones."""
    branches = [b for t in trees for b in t.branches]
    tokens = np.concatenate(branches)
    trained = tokens >= 0
    owner = np.repeat(np.arange(len(branches)), [len(b) for b in branches])[trained]
    num_tokens = scored = np.bincount(owner, minlength=len(branches))
    target = tokens[trained]
    if trees[0].closing:
        target, owner = token_ids(np.array([b[-1] for b in branches])), np.arange(len(branches))
        scored = np.ones_like(num_tokens)
    else:
        source = source[trained]
    return {
        "source": _long(source),
        "target": _long(target),
        "owner": _long(owner),
        "num_tokens": _long(num_tokens),
        "scored": _long(scored),
        "longest": max(len(t.prompt) + len(b) for t in trees for b in t.branches),
        "max_id": max(int(token_ids(tokens).max()), *(int(t.prompt.max()) for t in trees)),
    }


def _long(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
