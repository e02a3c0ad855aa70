"""Writes docs/settings.md from the settings' dataclasses: each flag with its default, its meaning and the reason for it.

    python scripts/settings_page.py [--check]

With --check nothing is written, and the exit code is 1 if the page is not what it would write.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pathlib
import sys
import textwrap
from collections.abc import Iterable, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tff_kit import experiment
from tff_kit.runtime.cluster import Machines
from tff_kit.tasks import TASKS, find_task

PAGE = ROOT / "docs" / "settings.md"
_HEAD = """# Settings

<!-- Written by scripts/settings_page.py from the dataclasses. Change a docstring there, then run `make settings`. -->

A setting is a flag on the command line and a field in Python: `--client-lr 0.1` is `tff_kit.Emnist(client_lr=0.1)`.
A run directory's `settings.json` has all of them. `python -m tff_kit train emnist --help` prints the same texts.

The defaults are those of the text that a task is taken from. A task may have other defaults; its section lists them.
`--NAME` switches a setting on that is off or on, and `--no-NAME` switches it off.
"""
_GROUPS = (
    ("Length and evaluation", experiment.Experiment),
    ("Communication", experiment.Communication),
    ("Algorithm", experiment.Algorithm),
    ("Participation", experiment.Participation),
    ("Privacy", experiment.Privacy),
)


def page() -> str:
    """Returns the text of the page."""
    sections = [_HEAD, "## Every federated task\n"]
    for title, group in _GROUPS:
        sections.append(f"### {title}\n\n{_table(group, _own_fields(group))}\n")
    for name in TASKS:
        settings = find_task(name)
        base = experiment.Experiment if issubclass(settings, experiment.Experiment) else experiment.Training
        fields = _different_fields(settings, base)
        sections.append(f"## Task `{name}`\n\n{inspect.getdoc(settings)}\n\n{_table(settings, fields)}\n")
    sections.append(f"## Machines\n\n{inspect.getdoc(Machines)}\n\n{_table(Machines, dataclasses.fields(Machines))}\n")
    return "\n".join(sections)


def _own_fields(settings: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(settings) if field.name in _own_docstrings(settings)]


def _different_fields(settings: type, base: type) -> list[dataclasses.Field]:
    """Returns the fields of `settings` that `base` has not, or has with another default or text."""
    known = {field.name: (field.default, _docstrings(base)[field.name]) for field in dataclasses.fields(base)}
    documented = _docstrings(settings)
    return [f for f in dataclasses.fields(settings) if known.get(f.name) != (f.default, documented[f.name])]


def _table(settings: type, fields: Iterable[dataclasses.Field]) -> str:
    documented = _docstrings(settings)
    rows = [f"| {_flag(field)} | {_default(field)} | {documented[field.name]} |" for field in fields]
    return "\n".join(["| flag | default | meaning |", "|---|---|---|", *rows])


def _flag(field: dataclasses.Field) -> str:
    name = field.name.replace("_", "-")
    return f"`--{name}`, `--no-{name}`" if field.default is True else f"`--{name}`"


def _default(field: dataclasses.Field) -> str:
    if field.default is None or field.default == "":
        return "none"
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    return f"`{field.default}`"


def _docstrings(settings: type) -> dict[str, str]:
    """Returns the docstring of each field, the subclass's for a field that it overrides."""
    classes = [base for base in reversed(settings.__mro__) if dataclasses.is_dataclass(base)]
    return {name: text for base in classes for name, text in _own_docstrings(base).items()}


def _own_docstrings(settings: type) -> dict[str, str]:
    """Returns the docstrings below the fields in the body of a class."""
    found = {}
    body: Sequence[ast.stmt] = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0].body  # type: ignore[attr-defined]
    for statement, following in zip(body, body[1:]):
        is_field = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if is_field and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[statement.target.id] = " ".join(following.value.value.split()).replace("|", "\\|")
    return found


def main(arguments: Sequence[str]) -> int:
    """Writes the page, or checks it, and returns the exit code."""
    text = page()
    if "--check" not in arguments:
        PAGE.write_text(text)
    elif not PAGE.is_file() or PAGE.read_text() != text:
        print(
            "error: Expected docs/settings.md to have the settings of now, found an older page. Run make settings.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
