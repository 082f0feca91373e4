"""Generates the catalogue page of losses and its pictures from the plugins, for `prefopt losses docs`."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from prefopt.losses import MENU, load_class
from prefopt.plugin import Data, Level, Needs, comments, traits
from prefopt.testing.kit import example
from prefopt.testing.numbers import build, call

PICTURES = Path("img") / "losses"
FORMULA_WIDTH = 80  # characters

# methods that were considered and left out, with the reason
LEFT_OUT = {
    "SPIN, SPO (self-play), step-DPO": "a way of making data, not a loss: `source=samples`, and pairs by step",
    "DRO-V": "it needs a value network beside the policy",
    "TIS-DPO": "it needs token weights from two further models",
    "relative RPO": "it needs an external embedding model to weigh pairs across prompts",
    "CPO-hinge, CPO-IPO": "found in TRL alone, without a paper; `slic_hf` and `ipo_sum` are their sources",
}

_INTRODUCTION = """\
# The catalogue of losses

This page is generated from the plugins by `prefopt losses docs`. Equation numbers are given where they could be checked
against the paper or code that cites it.

Notation: `y_w`, `y_l` are the chosen and the rejected completion of a prompt `x`; `n` is a completion's length in
tokens, the closing token included; `log pi(y|x)` is a sum over tokens, in nats; `rho = log pi - log pi_ref`;
`Delta = rho_w - rho_l`; `d` is the difference of log-probs of the two sides; `s` is a score. A loss gives one value per
example, and only the trainer takes means.

Needs: *reference*: log-probs of a frozen reference. *lengths*: completion lengths. *tokens*: per-token log-probs.
*scores*: a score per completion. *margin*, *probability*, *ties*: by how much the chosen side is better, the
probability that it is, and whether neither side is ([facts of a row](data.md#facts-of-a-row)). *mismatched*:
completions scored behind another prompt. *coupled*: an example's value depends on the batch; it is always the whole
global batch. *state*: carried from batch to batch, and in checkpoints.
*moving reference*, *control text*: as their names say. *log_sum_sq*, *ref_entropy*, *kl*, *log_away*, *log_toward*:
statistics over the whole vocabulary at each token; the last three need the reference in memory beside the policy.

Pictures: the value (black) and its slope (blue, dashed) as the chosen side's log-ratio rises and the rejected side's
falls, at the defaults; for single completions, of a desirable (black) and an undesirable one (grey).
"""


_CHECKED = {
    Level.SECONDARY: "secondary sources",
    Level.DERIVED: "the paper's equations",
    Level.AUTHORS_CODE: "the authors' code",
    Level.CONFIRMED: "an author's confirmation",
}
_RISES = {True: "Raises", False: "Lowers, by design,"}


@dataclass(frozen=True)
class Card:
    """The parts of a plugin's docstring."""

    summary: str
    formula: str
    at_reference: str
    identities: tuple[str, ...]
    fixed_points: str  # where training on the policy's own samples leads; empty for other losses
    differences: str


def write(folder: Path) -> Iterator[Path]:
    """Write `losses.md` and its pictures into `folder`; yield each path as it is written."""
    pictures = folder / PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    for name in MENU:
        drawn = picture(name)
        if drawn is not None:
            path = pictures / f"{name}.svg"
            path.write_text(drawn)
            yield path
    target = folder / "losses.md"
    target.write_text(page())
    yield target


def page() -> str:
    """Return the catalogue as Markdown."""
    parts = [_INTRODUCTION, _overview()]
    parts += [_section(name) for name in MENU]
    parts += [_compatibility(), _left_out()]
    return "\n".join(parts)


@cache
def card(cls: type[Any]) -> Card:
    """Split a plugin's docstring into its parts.

    Raises:
        ValueError: a part is missing.
    """
    text = inspect.cleandoc(cls.__doc__ or "")
    match = _PARTS.fullmatch(text)
    if match is None:
        raise ValueError(f"{cls.__name__}: the docstring lacks parts that the catalogue shows")
    summary, formula, value, claims, fixed, differences = match.groups()
    identities = tuple(_line(claims).removesuffix(".").split("; ")) if claims else ()
    return Card(_line(summary), formula, _line(value), identities, _line(fixed or ""), _line(differences))


def identities_with(name: str) -> list[str]:
    """Return what a loss equals at which settings: the claims of all docstrings that name it."""
    claims = (claim for other in MENU for claim in card(load_class(other)).identities)
    return [claim for claim in claims if re.search(rf"\b{name}\b", claim)]


_PARTS = re.compile(
    r"(.*?)\n\n(.*?)\n\nValue at policy = reference: (.*?)\n\n(?:Identities: (.*?)\n\n)?"
    r"(?:Fixed points: (.*?)\n\n)?Differences: (.*)",
    re.DOTALL,
)


def _line(text: str) -> str:
    return " ".join(text.split())


def _needs_text(needs: Needs) -> str:
    flags = [name.replace("_", " ") for name, value in needs.flags().items() if value is True]
    return ", ".join([*flags, *needs.flags()["vocab"]]) or "nothing further"


def _overview() -> str:
    rows = ["| name | what it is | data | needs | paper |", "|---|---|---|---|---|"]
    for name in MENU:
        cls = load_class(name)
        needs = example(cls).needs
        paper = f"[{cls.paper.removeprefix('https://').removeprefix('arxiv.org/abs/')}]({cls.paper})"
        summary = card(cls).summary.rstrip(".").replace("|", "\\|")
        rows.append(f"| [`{name}`](#{name}) | {summary} | {needs.data.value} | {_needs_text(needs)} | {paper} |")
    return "\n".join(rows) + "\n"


def _section(name: str) -> str:
    cls = load_class(name)
    parts, declared = card(cls), traits(example(cls))
    needs = declared.needs
    title = inspect.cleandoc(importlib.import_module(cls.__module__).__doc__ or "").splitlines()[0].rstrip(".")
    lines = [
        f"## {name}",
        "",
        f"[{title}]({cls.paper}). {parts.summary}",
        "",
        "```",
        _wrapped(parts.formula),
        "```",
        "",
    ]
    if picture_range(name) is not None:
        lines += [f"![{name}: value and slope]({(PICTURES / name).as_posix()}.svg)", ""]
    fields = dataclasses.fields(cls)
    if fields:
        lines += ["| hyper-parameter | default | unit, useful range |", "|---|---|---|"]
        about = comments(cls)
        lines += [f"| `{f.name}` | {_default(f)} | {about[f.name].replace('|', chr(92) + '|')} |" for f in fields]
        lines.append("")
    lines += [f"- Data: {needs.data.value}. Needs: {_needs_text(needs)}. Ranking: {declared.ranking.value}."]
    if declared.chosen_rises is not None:
        lines += [f"- {_RISES[declared.chosen_rises]} the chosen completion's own log-prob."]
    if (rates := declared.learning_rates) is not None:
        low, high = (f"{rate:g}".replace("e-0", "e-") for rate in (rates.low, rates.high))
        lines += [f"- Published learning rates: {low if low == high else f'{low} to {high}'}; {rates.source}."]
    if declared.audit is not None:
        audit = declared.audit
        lines += [f"- Checked on {audit.date} against {_CHECKED[audit.level]}: {audit.source}."]
    lines += [f"- Value at policy = reference: {parts.at_reference}"]
    if claims := identities_with(name):
        lines += ["- Identities:", *(f"    - `{claim}`" for claim in claims)]
    if parts.fixed_points:
        lines += [f"- Fixed points: {parts.fixed_points}"]
    for check, reason in getattr(cls, "exceptions", {}).items():
        lines += [f"- Does not pass the check `{check}`: {reason}."]
    return "\n".join([*lines, f"- Differences: {parts.differences}", ""])


def _wrapped(formula: str) -> str:
    """Put the statements of a long line below each other, where a page would cut it."""
    return "\n".join(
        re.sub(r"([,;]) {3,}", r"\1\n    ", line) if len(line) > FORMULA_WIDTH else line
        for line in formula.splitlines()
    )


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()}`"
    if field.default is dataclasses.MISSING:
        return "must be given"
    return f"`{field.default.value if isinstance(field.default, Enum) else field.default}`"


def presets() -> dict[str, tuple[str, str, str]]:
    """Return each preset of `conf/experiment/compat`: what it reproduces, how that differs, and what it sets."""
    found = {}
    for path in sorted(Path(str(files("prefopt.conf") / "experiment" / "compat")).glob("*.yaml"), key=lambda p: p.name):
        lines = path.read_text().splitlines()
        peer, note = (line.lstrip("# ") for line in lines[1:3])
        settings = [line.strip() for line in lines if line.startswith("  ") and "override" not in line]
        loss = next(line.split(": ")[1] for line in lines if "override /loss" in line)
        shown = ", ".join(s.replace(": ", "=") for s in settings if not s.endswith(":"))
        found[path.stem] = (peer, note, f"`{loss}`" + (f" with {shown}" if shown else ""))
    return found


def _compatibility() -> str:
    rows = [
        "## Same name, different loss",
        "",
        "What gives the numbers of other libraries: `prefopt train experiment=compat/NAME ...`. Those of TRL are",
        "tested against its code; the others were read from theirs.",
        "",
        "| there | `experiment=` | here | note |",
        "|---|---|---|---|",
    ]
    rows += [f"| {peer} | `compat/{name}` | {here} | {note} |" for name, (peer, note, here) in presets().items()]
    return "\n".join(rows) + "\n"


def _left_out() -> str:
    rows = ["## Left out", "", *(f"- {name}: {reason}." for name, reason in LEFT_OUT.items())]
    return "\n".join(rows) + "\n"


def picture_range(name: str) -> float | None:
    """Return how far the picture of a loss reaches to both sides, in nats of margin; None if it has no picture."""
    loss = example(load_class(name))
    needs = loss.needs
    if needs.data not in (Data.PAIRS, Data.UNPAIRED) or needs.coupled or needs.control_text or needs.tokens:
        return None
    if needs.vocab or needs.opponent:
        return None
    scale = getattr(loss, "beta", None) or getattr(loss, "tau", None) or 1 / getattr(loss, "eta", 0.2)
    return 6.0 / float(scale)


def curve(name: str, desirable: bool = True) -> tuple[list[float], list[float], list[float]]:
    """Return the margins, values and slopes of the picture."""
    reach = picture_range(name)
    assert reach is not None
    loss = example(load_class(name))
    margin = torch.linspace(-reach, reach, 121, dtype=torch.float64).requires_grad_()
    value = call(loss, build(loss.needs, _numbers(loss.needs, margin, desirable))).loss
    (slope,) = torch.autograd.grad(value.sum(), margin)
    return margin.tolist(), value.tolist(), slope.tolist()


def _numbers(needs: Needs, margin: Tensor, desirable: bool) -> dict[str, Tensor]:
    still = torch.zeros_like(margin).detach()
    one = torch.ones(len(margin), dtype=torch.int64)
    if needs.data is Data.UNPAIRED:
        return {
            "completion": margin,
            "ref_completion": still,
            "num_tokens": one,
            "desirable": torch.full_like(one, int(desirable)).bool(),
        }
    low = 0.0 if needs.reference else -float(margin.detach().abs().max()) / 2 - 0.5  # log-probs stay below 0
    return {
        "chosen": low + margin / 2,
        "rejected": low - margin / 2,
        "ref_chosen": still + low,
        "ref_rejected": still + low,
        "chosen_num_tokens": one,
        "rejected_num_tokens": one,
        "chosen_score": still + 1.0,
        "rejected_score": still,
        "margin": still + 1.0,
        "probability": still + 0.75,
        "tied": still > 0,
    }


def picture(name: str) -> str | None:
    """Draw `curve` as a small SVG, reproducible with one version of matplotlib."""
    if picture_range(name) is None:
        return None
    settings: Any = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 7, "path.simplify_threshold": 1.0}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(2.6, 1.5), layout="constrained")
        axes = figure.add_subplot()
        unpaired = example(load_class(name)).needs.data is Data.UNPAIRED
        if unpaired:
            axes.plot(*curve(name, desirable=False)[:2], color="0.6", linewidth=1)
        margin, value, slope = curve(name)
        axes.plot(margin, value, color="black", linewidth=1)
        scale = max(map(abs, value)) / (max(map(abs, slope)) or 1.0)  # drawn on its own scale: only its shape matters
        axes.plot(margin, [scale * s for s in slope], color="tab:blue", linewidth=0.8, linestyle="--")
        axes.axvline(0, color="0.8", linewidth=0.5)
        axes.axhline(0, color="0.8", linewidth=0.5)
        axes.set_xlabel("log-ratio, nats" if unpaired else "margin, nats", labelpad=1)
        axes.tick_params(length=2, pad=1)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    drawn = out.getvalue()
    return "\n".join(line.rstrip() for line in drawn.splitlines()) + "\n"
