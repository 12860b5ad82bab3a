"""The site and the README: complete, and every Python block in them runs as printed.

A page's ```python blocks run in order in one namespace. A block titled with a file name is written
as that file and imported under the module it would be in the repository; its tests are called. A
```text block titled "prints", right after a block, is what that block prints.
"""

import contextlib
import importlib
import importlib.util
import inspect
import io
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PACKAGES = (
    "", ".sweep", ".measures", ".curvature", ".flows", ".data", ".models", ".plot",
    ".regularizers", ".transforms", ".manifolds",
)  # fmt: skip
MODULES = (
    "objective",
    "sampling",
    "dynamics",
    "game",
    "play",
    "row_dynamics",
)  # without an __all__: what they define

_FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages():
    """README.md, and the pages of docs/ but for measured results."""
    found = [path for path in sorted(DOCS.rglob("*.md")) if "results" not in path.parts]
    readme = ROOT / "README.md"
    return [*found, readme] if readme.exists() and readme.read_text() else found


def name(page):
    return str(page.relative_to(ROOT))


def public_symbols():
    for package in PACKAGES:
        module = importlib.import_module(f"driftlab{package}")
        for symbol in module.__all__:
            yield f"{module.__name__}.{symbol}"
    for module in MODULES:
        module = importlib.import_module(f"driftlab.{module}")
        for symbol, value in vars(module).items():
            defined_here = getattr(value, "__module__", None) == module.__name__
            if defined_here and not symbol.startswith("_"):
                yield f"{module.__name__}.{symbol}"


def resolve(path):
    module, _, symbol = path.rpartition(".")
    return getattr(importlib.import_module(module), symbol)


@pytest.fixture(scope="module")
def documented():
    text = "\n".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
    return re.findall(r"^::: (\S+)", text, re.MULTILINE)


@pytest.mark.parametrize("symbol", sorted(set(public_symbols())))
def test_every_public_symbol_is_in_the_api_reference(symbol, documented):
    value = resolve(symbol)
    if inspect.ismodule(value):
        assert any(
            path == value.__name__ or path.startswith(f"{value.__name__}.") for path in documented
        )
    else:
        assert symbol in documented or any(resolve(path) is value for path in documented)


def test_the_navigation_and_the_files_agree():
    # BaseLoader: mkdocs.yml may hold tags that only mkdocs knows.
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)

    def paths(entry):
        if isinstance(entry, str):
            return [entry]
        entries = entry.values() if isinstance(entry, dict) else entry
        return [path for inner in entries for path in paths(inner)]

    listed = paths(config["nav"])
    assert len(listed) == len(set(listed))
    missing = [path for path in listed if not (DOCS / path).is_file()]
    assert not missing
    files = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert {path for path in files if not path.startswith("results/")} <= set(listed)


def test_images_exist():
    for page in pages():
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{name(page)}: {target}"


def load(path, title, monkeypatch):
    """Imports a file of a page as the module that it would be; calls the tests in it."""
    module_name = title.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module_name, module)
    spec.loader.exec_module(module)
    for symbol, value in list(vars(module).items()):
        if symbol.startswith("test_"):
            value()


@pytest.mark.parametrize("page", [p for p in pages() if "```python" in p.read_text()], ids=name)
def test_the_python_of_a_page_runs_and_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    namespace, text, printed = {"__name__": "docs"}, page.read_text(), None
    for fence in _FENCE.finditer(text):
        language, title, code = fence.groups()
        if language == "text" and title == "prints":
            assert printed is not None, "nothing was run before it"
            assert printed.rstrip() == code.rstrip()
        printed = None
        if language != "python":
            continue
        where = f"{name(page)}:{text[: fence.start()].count(chr(10)) + 2}"
        if title:
            path = tmp_path / title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
            load(path, title, monkeypatch)
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(code, where, "exec"), namespace)
        printed = output.getvalue()
