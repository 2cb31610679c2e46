"""What the site adds to the pages of this folder: each verb's options, the studies in the menu, and linked files."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from selfaug.cli.config import Command, Option, options_of
from selfaug.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[1]
# A link that leaves this folder leads to a file of the repository, which the site carries along.
_OUTWARD = re.compile(
    r"(\]\()(?:\.\./)+((?:configs|examples|src|benchmarks|hosts)/[^)#\s]+|[A-Z][A-Z_]+(?:\.md|\.cff)?)"
)


def on_config(config: Any) -> Any:
    """Put the pages that no one lists by hand into the menu."""
    studies = [f"studies/{path.name}" for path in sorted((ROOT / "docs" / "studies").glob("*.md"))]
    hosts = [f"hosts/{path.name}" for path in sorted((ROOT / "docs" / "hosts").glob("*.md"))]
    for entry in config.nav:
        if "Results" in entry:
            entry["Results"].append({"Every setting": studies})
        if "Reference" in entry:
            entry["Reference"].insert(1, {"Options": [{f"selfaug {verb}": f"reference/{verb}.md"} for verb in VERBS]})
        if "Guides" in entry:
            place = next(place for place, page in enumerate(entry["Guides"]) if "Other trainers" in page)
            entry["Guides"][place] = {"Other trainers": [*entry["Guides"][place].values(), *hosts]}
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each verb, and every file of the repository that a page links to."""
    for verb in VERBS:
        files.append(File.generated(config, f"reference/{verb}.md", content=_verb(verb)))
    for page in list(files.documentation_pages()):
        for _, path in _OUTWARD.findall(page.content_string):
            if (ROOT / path).is_file() and files.get_file_from_path(_carried(path)) is None:
                files.append(File.generated(config, _carried(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links that leave the folder lead to the carried files."""
    verbs = "\n".join(f"| [`{name}`]({name}.md) | {verb.help} |" for name, verb in VERBS.items())
    markdown = markdown.replace("<!-- verbs -->", verbs)
    up = "../" * page.file.src_uri.count("/")

    def led(match: re.Match[str]) -> str:
        return f"{match[1]}{up}{_carried(match[2])}" if (ROOT / match[2]).is_file() else match[0]

    return _OUTWARD.sub(led, markdown)


def _carried(path: str) -> str:
    """A page of the repository is carried as text, so that it is no second page of the site."""
    return f"repository/{path}.txt" if path.endswith(".md") else f"repository/{path}"


def _verb(verb: str) -> str:
    command: Command[Any] = importlib.import_module(VERBS[verb].module).COMMAND
    lines = [f"# selfaug {verb}", "", VERBS[verb].help[0].upper() + VERBS[verb].help[1:] + ".", ""]
    if (ROOT / "docs" / f"{verb}.md").is_file():
        lines += [f"[What it does, in detail](../{verb}.md).", ""]
    for part in command.parts or (command,):
        lines += [f"## {part.name}", ""] * bool(command.parts)
        lines += [*part.about.strip().splitlines(), "", "```bash", *part.examples, "```", ""]
        groups: dict[str, list[Option]] = {}
        for option in options_of(*part.kinds).values():
            groups.setdefault(option.group, []).append(option)
        for group, options in groups.items():
            lines += [f"### {group}", "", "| option | meaning |", "|---|---|", *map(_row, options), ""]
    return "\n".join(lines)


def _row(option: Option) -> str:
    name = option.name.upper() if option.about.get("positional") else f"--{option.name}"
    values = "{" + ",".join(map(str, option.choices)) + "}" if option.choices else option.metavar
    typed = name if option.is_switch or option.about.get("positional") else f"{name} {values}"
    return "| " + " | ".join(part.replace("|", "\\|") for part in (f"`{typed}`", _text(option.help))) + " |"


def _text(help_: str) -> str:
    plain = help_.replace("%%", "%").replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[")
    return re.sub(r"docs/([\w/-]+)\.md", r"[\1](../\1.md)", plain)
