"""The site describes every name that a user may use."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import attrs
import pytest

import clipseq
from clipseq.registry import hookspecs
from clipseq.testing import CHECKS

ROOT = Path(__file__).resolve().parents[2]


def public_modules():
    """Yield every module of clipseq that has an `__all__`."""
    yield "clipseq"
    for found in pkgutil.walk_packages(clipseq.__path__, "clipseq."):
        path = Path(found.module_finder.path) / found.name.rpartition(".")[2]
        source = path / "__init__.py" if found.ispkg else path.with_suffix(".py")
        if re.search(r"^__all__ = ", source.read_text(encoding="utf-8"), re.MULTILINE):
            yield found.name


@pytest.mark.parametrize("module", list(public_modules()))
def test_every_public_name_is_described(site, module):
    modules = {name: importlib.import_module(name) for name in public_modules()}

    def described(name):
        # A name that two modules export is described in one of them.
        value = getattr(modules[module], name)
        return any(
            site.has("py:", f"{other}.{name}")
            for other, offering in modules.items()
            if getattr(offering, name, None) is value
        )

    assert not [name for name in modules[module].__all__ if not described(name)]


def test_every_hook_is_described(site):
    hooks = [name for name in vars(hookspecs) if name.startswith("clipseq_")]
    assert hooks
    missing = [
        name for name in hooks if not site.has("py:function", f"clipseq.registry.hookspecs.{name}")
    ]
    assert not missing


def test_every_option_of_a_built_in_similarity_is_described(site):
    infos = [i for i in clipseq.available_similarities().values() if i.distribution == "clipseq"]
    assert len(infos) >= 5
    options = [f"{info.name}.{option}" for info in infos for option in info.options]
    assert not [option for option in options if not site.has("std:confval", option)]


def test_every_command_and_every_option_of_one_is_described(site):
    from typer.main import get_command

    from clipseq.cli.app import app

    group = get_command(app)
    page = (site.folder / "command_line.html").read_text(encoding="utf-8")
    headings = re.sub(r"<[^>]+>", "", "\n".join(re.findall(r"<h2>.*?</h2>", page)))
    assert not [name for name in group.commands if f"clipseq {name}" not in headings]
    flags = [
        ("-".join(["clipseq", name]).removesuffix("-"), flag)
        for name, command in {"": group, **group.commands}.items()
        for parameter in command.params
        for flag in [*parameter.opts, *parameter.secondary_opts]
    ]
    assert ("clipseq-train", "--resume") in flags
    described = [(*flag, site.has("std:cmdoption", ".".join(flag))) for flag in flags]
    assert not [flag for flag in described if not flag[-1]]


def test_every_option_of_the_pytest_plugin_is_described(site):
    source = (ROOT / "plugins" / "pytest_clipseq.py").read_text(encoding="utf-8")
    flags = re.findall(r'"(--clipseq-[a-z-]+)"', source)
    assert len(flags) >= 3
    assert not [flag for flag in flags if not site.has("std:cmdoption", f"pytest.{flag}")]


def config_keys():
    """Yield every key of a training configuration by its dotted path."""
    from clipseq.training import RunConfig

    def fields(cls, prefix):
        for field in attrs.fields(cls):
            yield f"{prefix}{field.name}"
            inner = next(
                filter(attrs.has, [field.type, *getattr(field.type, "__args__", ())]), None
            )
            if inner is not None:
                yield from fields(inner, f"{prefix}{field.name}.")

    yield from fields(RunConfig, "")
    for name in list(inspect.signature(clipseq.CLIP.__init__).parameters)[1:]:
        if name != "tokenizer":  # made from the table [tokenizer]
            yield f"model.{name}"
    yield from fields(clipseq.SignalConfig, "model.encoder_cfg.")
    yield from fields(clipseq.TextConfig, "model.text_cfg.")


def test_every_key_of_a_configuration_is_described(site):
    keys = list(config_keys())
    assert {"data.simulated.clips", "model.temperature", "model.text_cfg.freeze"} <= set(keys)
    assert not [key for key in keys if not site.has("std:confval", key)]


def test_every_environment_variable_is_described(site):
    source = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("clipseq", "plugins")
        for path in (ROOT / folder).rglob("*.py")
    )
    names = set(re.findall(r"\bCLIPSEQ_[A-Z_]+\b", source))
    assert {"CLIPSEQ_DISABLE", "CLIPSEQ_STRICT"} <= names
    assert not [name for name in names if not site.has("std:envvar", name)]


def test_every_check_and_its_promise_are_listed(site):
    page = (site.folder / "plugins.html").read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page))
    for check in CHECKS.values():
        assert f" {check.name} " in text, check.name
        assert _letters(check.promise) in _letters(text), check.promise


def _letters(text: str) -> str:
    # Quotes and escapes may differ on the page.
    return re.sub(r"[^a-z0-9]+", "", re.sub(r"&\w+;", "", text).lower())


def test_a_warning_is_an_error(build, tmp_path):
    broken = {
        "[no such page](nowhere.md)": "nowhere.md",
        "{confval}`training.no_such_key`": "training.no_such_key",
        "$\\nosuchcommand$": "nosuchcommand",
        "```{config-keys} clipseq.FailedPlugin\n```": "cause has no meaning",
        "```{house}\nattic: what is not used\n```": "a room attic that does not exist",
    }
    page = "# Title\n\n" + "\n\n".join(broken)
    (tmp_path / "index.md").write_text(page, encoding="utf-8")
    finished = build(tmp_path, tmp_path / "out")
    assert finished.returncode != 0
    assert not [text for text in broken.values() if text not in finished.stderr]
