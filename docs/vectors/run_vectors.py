"""Checks a library by the conformance vectors. Needs numpy only: neither prefopt nor torch.

    python run_vectors.py FOLDER             checks the plain numpy losses below
    python run_vectors.py FOLDER my_library  checks `my_library.LOSSES`, a mapping like the one below

A loss is a function (inputs, hyperparameters) -> one value per example. It may return (values, gradients) instead,
gradients by the names of `expected.gradients`; without them they are taken by differences. Exit code 1: something
is wrong.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np


def softplus(x):
    return np.logaddexp(0.0, x)


def sigmoid(x):
    return np.exp(-softplus(-x))


def ratios(inputs):
    return inputs["chosen"] - inputs["ref_chosen"], inputs["rejected"] - inputs["ref_rejected"]


def dpo(inputs, given):
    chosen, rejected = ratios(inputs)
    return softplus(-given["beta"] * (chosen - rejected))


def ipo(inputs, given):
    chosen, rejected = ratios(inputs)
    margin = chosen / inputs["chosen_num_tokens"] - rejected / inputs["rejected_num_tokens"]
    return (margin - 1 / (2 * given["tau"])) ** 2


def simpo(inputs, given):
    chosen, rejected = (inputs[side] / inputs[f"{side}_num_tokens"] for side in ("chosen", "rejected"))
    return softplus(-given["beta"] * (chosen - rejected - given["gamma_beta_ratio"]))


def kto(inputs, given):
    z0 = max(0.0, float(np.mean(inputs["mismatched"] - inputs["ref_mismatched"])))
    away = z0 - (inputs["completion"] - inputs["ref_completion"])
    good, value = inputs["desirable"], given["beta"] * away
    return np.where(good, given["desirable_weight"] * sigmoid(value), given["undesirable_weight"] * sigmoid(-value))


LOSSES = {"dpo": dpo, "ipo": ipo, "simpo": simpo, "kto": kto}


def cases(vectors):
    """The first case and the others; one without inputs has those of the case before."""
    inputs = vectors["inputs"]
    for case in [vectors, *vectors["cases"]]:
        inputs = case.get("inputs", inputs)
        yield case["name"], case, inputs


def arrays(inputs, dtype):
    """Integers and booleans stay, floating-point numbers get the case's precision."""
    found = {name: np.array(value) for name, value in inputs.items()}
    return {name: value.astype(dtype) if value.dtype.kind == "f" else value for name, value in found.items()}


def differences(loss, inputs, given, names):
    """Gradients of the sum of values, by central differences in float64."""
    found = {}
    for name in names:
        found[name] = np.zeros(inputs[name].shape)
        for place in np.ndindex(inputs[name].shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = {key: value.copy() for key, value in inputs.items()}
                moved[name][place] += step
                ends.append(np.sum(loss(moved, given)))
            found[name][place] = (ends[0] - ends[1]) / 2e-5
    return found


def errors(loss, case, inputs):
    """(what, error, allowed) of the values and of each gradient of a case."""
    expected, allowed = case["expected"], case["tolerance"]
    numbers = arrays(inputs, case["dtype"])
    result = loss(numbers, case["hyperparameters"])
    values, gradients = result if isinstance(result, tuple) else (result, None)
    yield "values", distance(values, expected["loss"]), allowed
    if gradients is None and case["dtype"] == "float64":
        gradients = differences(loss, numbers, case["hyperparameters"], expected["gradients"])
        # What is left of the values' precision after a difference.
        allowed = max(1e-6, allowed / 1e-5)
    for name, value in (gradients or {}).items():
        yield f"gradient on {name}", distance(value, expected["gradients"][name]), allowed


def distance(found, expected):
    found, expected = np.asarray(found, dtype="float64"), np.asarray(expected)
    error = float(np.max(np.abs(found - expected) / np.maximum(1, np.abs(expected))))
    return error if np.isfinite(error) else np.inf


def main(folder, losses):
    wrong = 0
    for name, loss in losses.items():
        vectors = json.loads((Path(folder) / f"{name}.json").read_text())
        checks = [(title, *check) for title, case, inputs in cases(vectors) for check in errors(loss, case, inputs)]
        bad = [check for check in checks if not check[2] <= check[3]]
        print(f"{name}: {'pass' if not bad else 'FAILS'} ({len(checks)} checks)")
        for title, what, error, allowed in bad:
            print(f"  {title}: {what} off by {error:.3g}, allowed {allowed:.3g}")
        wrong += bool(bad)
    return 1 if wrong else 0


if __name__ == "__main__":
    given = sys.argv[1:]
    if len(given) not in (1, 2):
        sys.exit(__doc__)
    sys.exit(main(given[0], LOSSES if len(given) == 1 else importlib.import_module(given[1]).LOSSES))
