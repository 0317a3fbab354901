"""What `make docs` adds to mkdocs: which files the site has, and a page of reference for every room that users import.

The site is the repository: a file has the same path in both, so that every relative link holds in both. It shows README.md,
docs/ and whatever files these link to. mkdocs calls the functions `on_…`.

    mkdocs build
"""

import importlib
import inspect
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOORS = ROOT / "src" / "steindiff" / "integrations"
FIRST = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""The pages outside docs/ that the navigation names."""
ROOMS = (
    "sampling", "solvers", "grids", "schedules", "denoisers", "noise", "calibration", "corrections", "divergence", "standalone",
    "integrations", "models", "analytic", "metrics", "run", "train.plan", "train.loop", "study.testbed", "study.grid",
    "study.run", "report.study", "diagnostics", "errors",
)  # fmt: skip
"""What users import, in the order of the reference."""
HOSTED = ("steindiff.integrations.comfyui", "steindiff.integrations.webui")
"""What only another program can import, where its own modules are."""
ENTRY = "{show_root_heading: true, show_root_toc_entry: true, show_root_full_path: false}"
REFERENCE, FOLDERS = "api/", ("docs/integrations/", "docs/")
"""Entries of the navigation that stand for many pages: the reference, and the pages of these folders that it does not name."""
_LINK = re.compile(r"\]\(([^)\s#]+)[^)\s]*\)")
_AFTER = re.compile(r"(-->\n)(?=[|#])")


def linked(pages: set[Path]) -> set[Path]:
    """These pages of the repository, the files that they link to, and so on."""
    found, waiting = set[Path](), pages
    while waiting:
        found |= waiting
        texts = {page: page.read_text(encoding="utf-8") for page in waiting if page.suffix == ".md"}
        near = {(page.parent / name).resolve() for page, text in texts.items() for name in _LINK.findall(text)}
        waiting = {path for path in near - found if path.is_file() and path.is_relative_to(ROOT)}
    return found


def modules() -> list[str]:
    """The modules of the reference: the package, its rooms, and the doors to other people's models one by one."""
    doors = [path.stem for path in sorted(DOORS.iterdir()) if path.stem[0] != "_" and path.suffix in ("", ".py")]
    rooms = [[room, *(f"{room}.{door}" for door in doors if room == "integrations")] for room in ROOMS]
    return ["steindiff", *(f"steindiff.{name}" for names in rooms for name in names)]


def reference(module: str) -> str:
    """The page of a module: every name that it shows, where it is defined; of the package, where each is described."""
    head = f"# {module}\n\n"
    if module in HOSTED:
        return head + f"::: {module}\n"
    found = importlib.import_module(module)
    names = vars(found).get("__all__")
    if module == "steindiff":
        return head + f"{inspect.getdoc(found)}\n\n" + "".join(f"- {_entry(name, getattr(found, name))}\n" for name in names)
    if names is None:
        return head + f"::: {module}\n"
    shown = [f"::: {_place(module, name, getattr(found, name))}\n    options: {ENTRY}\n" for name in names]
    return "\n".join([head, f"::: {module}\n    options: {{members: false}}\n", *shown])


def _place(module: str, name: str, value: object) -> str:
    """Where an object is defined; a constant, or an alias of a type, is where it is shown."""
    home = str(getattr(value, "__module__", "")) if inspect.isclass(value) or inspect.isfunction(value) else ""
    return f"{home if home.startswith('steindiff') else module}.{name}"


def _entry(name: str, value: object) -> str:
    """A name of the package, where it is described, and the first line of its docstring."""
    said = (inspect.getdoc(value) or "").partition("\n")[0]
    if not inspect.ismodule(value):
        return f"[`{name}`][{_place('steindiff.denoisers', name, value)}]: {said}"
    return f"[`{name}`]({value.__name__}.md): {said}" if value.__name__ in modules() else f"`{name}`: {said}"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation with all pages."""
    many: dict[str, list[object]] = {REFERENCE: [{module: f"{REFERENCE}{module}.md"} for module in modules()]}
    for folder in FOLDERS:
        pages = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / folder).glob("*.md"))]
        many[folder] = [page for page in pages if page not in str(config.nav)]
    whole = [{name: many.get(str(entry), entry)} for item in config.nav or [] for name, entry in item.items()]
    config.nav = [item for item in whole if all(item.values())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site under their paths in the repository, and the pages of the reference."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    docs = {path for path in Path(config.docs_dir).rglob("*.md") if path.parent.name != "cards"}
    for path in sorted(linked(docs | {ROOT / name for name in FIRST})):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for module in modules():
        files.append(File.generated(config, f"{REFERENCE}{module}.md", content=reference(module)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page in the dialect of mkdocs: tables and headings stand alone, and a folded part says that it holds Markdown."""
    if page.file.src_uri.startswith("docs/results/"):
        page.meta["search"] = {"exclude": True}  # numbers by the thousand
    return _AFTER.sub(r"\1\n", markdown).replace("<details>", '<details markdown="1">')
