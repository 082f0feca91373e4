"""The suite's cases, led by coverage: `python -m tests.fuzz.guided rows -runs=100000` (needs `pip install atheris`).

Hypothesis draws a case from the bytes that libFuzzer makes, and libFuzzer keeps the bytes that reach a new branch of
`prefopt`. It fits where our own Python takes input apart; Arrow, Parquet and safetensors are read by compiled code, in
which it sees no branches. What follows the name is libFuzzer's: `-max_total_time=600`, a folder that keeps a corpus.
"""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["prefopt"]):
    from tests.fuzz import test_data, test_texts

PARTS = {
    "rows": test_data.test_rows,
    "templates": test_data.test_chat_templates,
    "terminals": test_texts.test_terminals,
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        sys.exit(f"which of {', '.join(PARTS)}?")
    warnings.simplefilter("ignore")  # in the suite they are errors; here one would end the search
    test = PARTS[sys.argv.pop(1)]
    start = Path(tempfile.mkdtemp(prefix="prefopt-fuzz-"))
    for i in range(16):  # a case takes hundreds of bytes, to which libFuzzer would not grow by itself
        (start / str(i)).write_bytes(random.Random(i).randbytes(2048))
    atheris.Setup([*sys.argv, "-len_control=0", str(start)], test.hypothesis.fuzz_one_input)
    atheris.Fuzz()
