"""The standard output of a `--json` verb is JSON, whatever libraries print."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import prefopt.cli
from prefopt.cli import main
from prefopt.common.json_output import only_json, print_json

# Libraries print when they are imported, from C, in child processes and when the process ends.
NOISY = """
import atexit, ctypes, json, os, subprocess, sys
import prefopt.cli
load = prefopt.cli._module
def noisy(verb):
    print("a greeting")
    os.write(1, b"from C\\n")
    ctypes.CDLL(None).puts(b"in a buffer of C")
    subprocess.run([sys.executable, "-S", "-c", "print('from a child')"], check=True)
    return load(verb)
prefopt.cli._module = noisy
*others, last = json.loads(sys.argv[1])
for argv in others:
    assert prefopt.cli.main(argv) == 0, argv
    print("between", flush=True)
atexit.register(print, "goodbye")
sys.argv = ["prefopt", *last]
sys.exit(prefopt.cli.main())
"""


@pytest.mark.slow
def test_nothing_but_json_whatever_libraries_print(pairs_file: Path, tmp_path: Path) -> None:
    settings = tmp_path / "dpo.json"
    settings.write_text('{"beta": 0.2, "loss_type": "sigmoid"}')
    argvs = [
        ["losses", "--json"],
        ["plan", "loss=dpo", "--model-shape", "llama3-8b", "--json"],
        ["data", "check", str(pairs_file), "--js"],
        ["import", str(settings), "--json", "--class", "DPOConfig"],
        ["reference", "list", "--folder", str(tmp_path / "none"), "--json"],
        ["doctor", "--json"],
    ]
    done = subprocess.run([sys.executable, "-c", NOISY, json.dumps(argvs)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parts = done.stdout.split("between\n")
    assert len(parts) == len(argvs)
    assert all(isinstance(json.loads(part), dict | list) for part in parts)
    assert done.stderr.count("from a child") == len(argvs)
    assert "in a buffer of C" in done.stderr
    assert "goodbye" in done.stderr


def test_several_runs_are_one_list(finished: Path, tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(finished), str(tuned), "--json"]) == 0
    assert [one["run"] for one in json.loads(capsys.readouterr().out)] == [str(finished), str(tuned)]


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    with only_json():
        print("a greeting")
        print_json({"figure": [float("nan"), float("inf"), 0.5]})
    assert capsys.readouterr() == ('{"figure": ["nan", "inf", 0.5]}\n', "a greeting\n")


def test_verbs_print_json_in_one_way() -> None:
    for file in Path(prefopt.cli.__file__).parent.glob("*.py"):
        assert "print(json" not in file.read_text(encoding="utf-8"), file.name
