"""Reads the source of `prefopt/`: sizes, imports, names and uses of private attributes. Used by `tests/house.py`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]

# A package may import only from those above it, lazy imports included.
LAYERS = (
    "errors",
    "plugin",
    "losses",
    "common",
    "testing",
    "data",
    "engine",
    "models",
    "rewards",
    "train",
    "config",
    "worlds",
    "evaluate",
    "migrate",
    "runs",
    "compare",
    "report",
    "planning",
    "cli",
)
# Libraries that take long to load, so that a function may import them where it needs them.
HEAVY = {
    "accelerate",
    "datasets",
    "huggingface_hub",
    "hydra",
    "lm_eval",
    "matplotlib",
    "mlflow",
    "numpy",
    "omegaconf",
    "pandas",
    "peft",
    "pyarrow",
    "rich",
    "safetensors",
    "scipy",
    "statsmodels",
    "tokenizers",
    "torch",
    "trackio",
    "transformers",
    "wandb",
    "yaml",
}
# Documented for everybody in spite of their names.
PUBLIC = {"_exit", "_current_frames", "_getframe", "_replace", "_asdict", "_fields", "_make"}
UPSTREAM = "# upstream:"  # begins the comment that justifies a use of a private attribute

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Import:
    """One `import` or `from … import` statement; `targets` are the modules that it names."""

    line: int
    lazy: bool  # inside a function
    targets: tuple[str, ...]
    names: tuple[str, ...]  # what `from … import` takes, else nothing


@dataclass(frozen=True)
class Module:
    name: str  # dotted
    path: Path
    tree: ast.Module = field(repr=False)
    lines: tuple[str, ...] = field(repr=False)
    known: Mapping[str, object] = field(repr=False)  # all modules of the house

    @property
    def layer(self) -> str:
        """The package below `prefopt` that this module belongs to; empty for `prefopt` itself."""
        return self.name.removeprefix("prefopt").removeprefix(".").partition(".")[0]

    def at(self, line: int) -> str:
        return f"{self.path.relative_to(ROOT)}:{line}"

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def functions(self) -> list[Function]:
        return [n for n in self.nodes if isinstance(n, Function)]

    @cached_property
    def imports(self) -> list[Import]:
        inside = {n for f in self.functions for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)}
        found = []
        for node in self.nodes:
            lazy = node in inside
            if isinstance(node, ast.Import):
                found.append(Import(node.lineno, lazy, tuple(a.name for a in node.names), ()))
            elif isinstance(node, ast.ImportFrom) and node.module:
                full = {a.name: f"{node.module}.{a.name}" for a in node.names}
                targets = tuple(dict.fromkeys(f if f in self.known else node.module for f in full.values()))
                found.append(Import(node.lineno, lazy, targets, tuple(full)))
        return found


class House:
    """The modules of `prefopt/`, and what can be counted about them."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.modules: dict[str, Module] = {}
        for path in sorted((root / "prefopt").rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            text = path.read_text()
            self.modules[name] = Module(name, path, ast.parse(text), tuple(text.splitlines()), self.modules)

    @property
    def line_count(self) -> int:
        return sum(len(module.lines) for module in self.modules.values())

    def loose_modules(self) -> list[str]:
        return sorted(p.stem for p in (self.root / "prefopt").glob("*.py") if p.stem != "__init__")

    def circles(self) -> list[list[str]]:
        """Groups of modules that import each other, largest first; an imported module's parents do not count."""
        edges = {
            name: {t for i in module.imports for t in i.targets if t in self.modules and t != name}
            for name, module in self.modules.items()
            if name != "prefopt"  # the public names come from everywhere, and nobody may import them from there
        }
        return sorted((sorted(c) for c in _components(edges) if len(c) > 1), key=len, reverse=True)

    def imports_of_root(self) -> list[str]:
        """Imports of public names from `prefopt` itself, which would hide a circle."""
        return [
            f"{m.at(i.line)} {', '.join(i.names)}"
            for m in self.modules.values()
            for i in m.imports
            if "prefopt" in i.targets and i.names and set(i.names) != {"__version__"}
        ]

    def imports_from_below(self) -> list[str]:
        found = []
        for module in self.modules.values():
            if not module.layer:
                continue
            allowed = LAYERS[: LAYERS.index(module.layer) + 1]
            for statement in module.imports:
                for target in statement.targets:
                    if target.startswith("prefopt.") and target.split(".")[1] not in allowed:
                        found.append(f"{module.at(statement.line)} {target}")
        return found

    def lazy_imports(self) -> list[str]:
        return [f"{m.at(i.line)} {', '.join(i.targets)}" for m in self.modules.values() for i in m.imports if i.lazy]

    def light_lazy_imports(self) -> list[str]:
        """Imports inside functions that load no heavy library, directly or through the imported module."""
        heavy = self._loads_heavy
        return [
            f"{m.at(i.line)} {', '.join(i.targets)}"
            for m in self.modules.values()
            for i in m.imports
            if i.lazy and not any(t in heavy or t.partition(".")[0] in HEAVY for t in i.targets)
        ]

    def own_lazy_imports(self) -> list[str]:
        """Imports of prefopt's modules inside functions, outside the verbs."""
        return [
            f"{m.at(i.line)} {', '.join(i.targets)}"
            for m in self.modules.values()
            for i in m.imports
            if i.lazy and m.layer != "cli" and any(t.partition(".")[0] == "prefopt" for t in i.targets)
        ]

    @cached_property
    def _loads_heavy(self) -> set[str]:
        """Modules whose import loads a heavy library: by themselves, a parent or another module."""
        needs: dict[str, set[str]] = {}
        for name, module in self.modules.items():
            eager = {t for i in module.imports if not i.lazy for t in i.targets}
            parents = {".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)}
            needs[name] = eager | parents
        heavy = {name for name, targets in needs.items() if any(t.partition(".")[0] in HEAVY for t in targets)}
        while more := {name for name, targets in needs.items() if name not in heavy and targets & heavy}:
            heavy |= more
        return heavy

    def private_overrides(self) -> list[str]:
        """Methods of ours that replace a private method of a library's class."""
        found = []
        for module, node, bases in self._classes_on_libraries:
            for method in node.body:
                if (
                    isinstance(method, Function)
                    and _private(method.name)
                    and any(hasattr(b, method.name) for b in bases)
                ):
                    found.append(f"{module.at(method.lineno)} {node.name}.{method.name}")
        return [f for f in found if not self._justified(f)]

    def private_reads(self) -> list[str]:
        """Private attributes and modules of libraries that we read, import or set."""
        found = []
        inherited = {
            id(n)
            for module, node, bases in self._classes_on_libraries
            for n in ast.walk(node)
            if isinstance(n, ast.Attribute) and _on_self(n) and any(hasattr(b, n.attr) for b in bases)
        }
        for module in self.modules.values():
            own = _defined_in(module.nodes)
            for node in module.nodes:
                for name in _private_names(node):
                    if id(node) in inherited or (not _on_self(node) and name not in own):
                        found.append(f"{module.at(node.lineno)} {name}")
        return [f for f in found if not self._justified(f)]

    @cached_property
    def _classes_on_libraries(self) -> list[tuple[Module, ast.ClassDef, list[type]]]:
        """Our classes that derive from a library's, with the library's classes among all their bases."""
        found = []
        for module in self.modules.values():
            for node in module.nodes:
                if isinstance(node, ast.ClassDef) and node.bases:
                    ours = getattr(import_module(module.name), node.name, None)
                    every = ours.__mro__[1:] if isinstance(ours, type) else ()
                    theirs = [
                        c
                        for c in every
                        if c.__module__.partition(".")[0] not in {"builtins", "prefopt", *sys.stdlib_module_names}
                    ]
                    if theirs:
                        found.append((module, node, theirs))
        return found

    def _justified(self, place: str) -> bool:
        """Whether the line, or the one above it, gives the upstream reason in a comment."""
        path, _, line = place.partition(" ")[0].partition(":")
        lines = (self.root / path).read_text().splitlines()
        return any(UPSTREAM in text for text in lines[max(0, int(line) - 2) : int(line)])

    def long_functions(self, most: int = 50) -> list[str]:
        return [
            f"{m.at(f.lineno)} {f.name}: {size} lines"
            for m in self.modules.values()
            for f in m.functions
            if (size := (f.end_lineno or f.lineno) - f.lineno + 1) > most
        ]

    def wide_functions(self, most: int = 8) -> list[str]:
        found = []
        for module in self.modules.values():
            for function in module.functions:
                arguments = function.args
                names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
                count = len([n for n in names if n not in ("self", "cls")])
                if count > most:
                    found.append(f"{module.at(function.lineno)} {function.name}: {count} parameters")
        return found

    def long_files(self, most: int = 400) -> list[str]:
        files = [
            p for folder in ("prefopt", "benchmarks", "tests", "examples") for p in (self.root / folder).rglob("*.py")
        ]
        sizes = {p: len(p.read_text().splitlines()) for p in sorted(files)}
        return [f"{p.relative_to(self.root)}: {size} lines" for p, size in sizes.items() if size > most]

    def shared_class_names(self) -> list[str]:
        places = defaultdict(list)
        for module in self.modules.values():
            for node in module.nodes:
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(module.at(node.lineno))
        return [f"{name}: {', '.join(where)}" for name, where in sorted(places.items()) if len(where) > 1]

    def shared_module_names(self) -> list[str]:
        places = defaultdict(list)
        for name, module in self.modules.items():
            if module.layer != "cli":
                places[name.rpartition(".")[2]].append(name)
        return [f"{name}: {', '.join(where)}" for name, where in sorted(places.items()) if len(where) > 1]

    def files_naming(self, loss: str) -> list[str]:
        """The files that are named after a loss or mention it; what is generated, docs/ and this one apart."""
        out = [
            subprocess.run(["git", *command], capture_output=True, text=True, check=True, cwd=self.root).stdout
            for command in (["grep", "-lw", loss], ["ls-files", f"**/{loss}.py", f"**/test_{loss}.py"])
        ]
        ignored = ("docs/", "CHANGELOG.md", "tests/house.py")
        return sorted({f for f in "".join(out).split() if not f.startswith(ignored)})


def _components(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of a graph, by Kosaraju's two passes."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(start: str, graph: dict[str, set[str]], into: list[str]) -> None:
        stack: list[tuple[str, Iterator[str]]] = [(start, iter(graph.get(start, ())))]
        seen.add(start)
        while stack:
            node, rest = stack[-1]
            after = next((n for n in rest if n not in seen), None)
            if after is None:
                into.append(node)
                stack.pop()
            else:
                seen.add(after)
                stack.append((after, iter(graph.get(after, ()))))

    for node in edges:
        if node not in seen:
            visit(node, edges, order)
    backwards: dict[str, set[str]] = defaultdict(set)
    for node, targets in edges.items():
        for target in targets:
            backwards[target].add(node)
    seen.clear()
    found = []
    for node in reversed(order):
        if node not in seen:
            component: list[str] = []
            visit(node, backwards, component)
            found.append(component)
    return found


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def _on_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def _private_names(node: ast.AST) -> list[str]:
    """The private names that one node of the tree reads, sets or imports."""
    if isinstance(node, ast.Attribute):
        names = [node.attr]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("prefopt"):
        names = [*node.module.split("."), *(a.name for a in node.names)]
        names = [] if node.module == "__future__" else names
    elif isinstance(node, ast.Import):
        names = [part for a in node.names if not a.name.startswith("prefopt") for part in a.name.split(".")]
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "setattr", "hasattr")
    ):
        name = node.args[1] if len(node.args) > 1 else None
        names = [name.value] if isinstance(name, ast.Constant) and isinstance(name.value, str) else []
    else:
        names = []
    return [n for n in names if _private(n) and n not in PUBLIC]


def _defined_in(nodes: Iterable[ast.AST]) -> set[str]:
    """The private names that a file defines itself: functions, classes, variables and attributes of `self`."""
    found = set()
    for node in nodes:
        if isinstance(node, Function | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _on_self(node):
            found.add(node.attr)
    return {n for n in found if _private(n)}
