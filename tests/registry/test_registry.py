"""The registry, against distributions that are on the path but were never installed by pip.

Here they offer similarities; test_losses.py covers losses.
"""

import copy
import os
import re
import subprocess
import sys
import textwrap
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import clipseq
from clipseq.cli.doctor import diagnose
from clipseq.registry import discovery, lookup

WORKING = """
    from clipseq import Similarity, hookimpl, unit

    class FooSimilarity(Similarity):
        '''A foo.'''
        default_weight = 0.7

        def __init__(self, *, size=3):
            super().__init__()

        def score(self, x, y):
            return unit(x.values.sum(1)) @ unit(y.values.sum(1)).T

        def align(self, x, y):
            return x.values.new_ones(len(x.values), x.values.shape[1], y.values.shape[1])

    @hookimpl
    def clipseq_similarities():
        return {"foo": FooSimilarity}
"""


BUILT_IN = {"attention", "combined", "global", "local", "temporal"}


def test_finds_the_built_ins_through_their_entry_points(fresh_registry):
    infos = clipseq.available_similarities()
    assert list(infos) == sorted(BUILT_IN)
    local = infos["local"]
    assert (local.name, local.distribution) == ("local", "clipseq")
    assert local.version == clipseq.__version__
    assert local.options == {
        "window": 16,
        "stride": 1,
        "direction": "both",
        "embed_dim": None,
    }
    assert local.default_weight == 0.5
    assert local.summary == (
        "The mean cosine of each window with its best match in the other sequence, both ways."
    )
    assert [name for name, info in infos.items() if info.composite] == ["combined"]


def test_finds_the_similarity_of_a_third_party(distribution):
    distribution(WORKING)
    info = clipseq.available_similarities()["foo"]
    assert (info.distribution, info.version) == ("clipseq-foo", "1.2")
    assert (info.summary, info.default_weight, info.options) == ("A foo.", 0.7, {"size": 3})
    assert isinstance(clipseq.get_similarity("foo", size=4), info.cls)


BROKEN = {
    "import": ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "exits without a word": ("raise SystemExit", "cannot be used: SystemExit; "),
    "skips": ("import pytest; pytest.skip('no GPU', allow_module_level=True)", "Skipped: no GPU"),
    "hook exits": (
        "import sys\nfrom clipseq import hookimpl\n"
        "@hookimpl\ndef clipseq_similarities(): sys.exit('no licence')",
        "SystemExit: no licence",
    ),
    "looks up": ("import clipseq\nBASE = clipseq.get_similarity('global')", "must not look"),
    "hook looks up": (
        "import clipseq\n@clipseq.hookimpl\n"
        "def clipseq_similarities(): return dict(clipseq.available_similarities())",
        "must not look up or register anything while it is loaded; do it in the __init__",
    ),
    "registers": (
        WORKING + "    import clipseq\n    clipseq.register_similarity('foo', FooSimilarity)",
        "must not look",
    ),
    "raises": ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
    "no hook": ("x = 1", "implements no hook: decorate clipseq_similarities"),
    "misspelt hook": (
        "from clipseq import hookimpl\n@hookimpl\ndef clipseq_similarites(): return {}",
        "no hook 'clipseq_similarites': did you mean 'clipseq_similarities'",
    ),
    "no mapping": (
        "from clipseq import hookimpl\n@hookimpl\ndef clipseq_similarities(): return ['foo']",
        "must return a mapping name -> class",
    ),
    "hook returns nothing": (
        "from clipseq import hookimpl\n@hookimpl\ndef clipseq_similarities(): {'foo': int}",
        r"clipseq_similarities\(\) must return a mapping name -> class, got None",
    ),
    "hook raises": (
        "from clipseq import hookimpl\n@hookimpl\ndef clipseq_similarities(): return 1 / 0",
        "ZeroDivisionError",
    ),
    "no similarity": (
        "from clipseq import hookimpl\n@hookimpl\ndef clipseq_similarities(): return {'foo': int}",
        "must be a subclass of clipseq.Similarity, got <class 'int'>",
    ),
    "abstract": (
        "from clipseq import hookimpl, Similarity\nclass Foo(Similarity):\n"
        "    def score(self, x, y): ...\n"
        "@hookimpl\ndef clipseq_similarities(): return {'foo': Foo}",
        "does not define align",
    ),
    "final": (
        WORKING.replace(
            "def align", "def forward(self, x, y):\n            ...\n\n        def align"
        ),
        "overrides forward, which is final",
    ),
    "bad name": (WORKING.replace('"foo"', '"Foo-1"'), "must match .* got 'Foo-1'"),
    "required option": (
        WORKING.replace("size=3", "size"),
        "'size' must be a keyword with a default",
    ),
    "kwargs": (WORKING.replace("*, size=3", "**options"), "options must be named"),
    **{
        f"weight {weight}": (
            WORKING.replace("0.7", weight),
            "default_weight must be a positive, finite number, got",
        )
        for weight in ("0", "-1", "float('nan')", "float('inf')", "None", "'0.3'", "True")
    },
}


@pytest.mark.parametrize(("source", "cause"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_one_warning_and_nothing_else_breaks(
    distribution, source, cause, unchecked_signatures
):
    distribution(source)
    with pytest.warns(clipseq.PluginWarning, match=cause) as caught:
        infos = clipseq.available_similarities()
    assert len(caught) == 1
    assert "clipseq-foo 1.2" in str(caught[0].message)
    assert set(infos) == BUILT_IN
    (failed,) = clipseq.failed_plugins()
    assert (failed.name, failed.distribution, failed.version) == ("foo", "clipseq-foo", "1.2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clipseq.get_similarity("global")
    with pytest.raises(clipseq.UnknownSimilarityError, match="could not be loaded"):
        clipseq.get_similarity("foo")


def test_an_interrupt_while_a_plugin_loads_is_not_a_failure_of_the_plugin(distribution):
    source = "import builtins\nif not hasattr(builtins, 'again'): raise KeyboardInterrupt\n"
    distribution(source + textwrap.dedent(WORKING))
    with pytest.raises(KeyboardInterrupt):
        clipseq.available_similarities()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.again", True, raising=False)
        assert set(clipseq.available_similarities()) == {*BUILT_IN, "foo"}
    assert not clipseq.failed_plugins()


def test_another_thread_waits_for_what_is_being_loaded(distribution):
    distribution("import time\ntime.sleep(0.3)\n" + textwrap.dedent(WORKING))
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(clipseq.available_similarities) for _ in range(2)]
        assert all("foo" in future.result() for future in found)


def test_a_distribution_without_metadata_is_named_by_its_entry_point(distribution, tmp_path):
    distribution(WORKING)
    next(tmp_path.glob("*.dist-info/METADATA")).unlink()
    info = clipseq.available_similarities()["foo"]
    assert info.distribution.startswith("unknown distribution of clipseq_foo_")
    assert info.version == ""


def test_strict_makes_the_warning_an_error_every_time(distribution, monkeypatch):
    distribution("import a_module_that_is_not_there")
    monkeypatch.setenv("CLIPSEQ_STRICT", "1")
    for _ in range(2):
        with pytest.raises(clipseq.PluginError, match="clipseq-foo 1.2 cannot be used"):
            clipseq.available_similarities()


def test_disable_leaves_plugins_out(distribution, monkeypatch):
    distribution("raise RuntimeError('must not be imported')")
    monkeypatch.setenv("CLIPSEQ_DISABLE", "foo, attention")
    assert set(clipseq.available_similarities()) == BUILT_IN - {"attention"}
    with pytest.raises(clipseq.UnknownSimilarityError, match="left out by CLIPSEQ_DISABLE"):
        clipseq.get_similarity("attention")
    with pytest.raises(
        clipseq.UnknownSimilarityError,
        match=r"'xyz'; registered: .*temporal \(left out by CLIPSEQ_DISABLE: attention, foo\)",
    ):
        clipseq.get_similarity("xyz")
    assert "attention" not in clipseq.get_similarity("combined").parts


def test_when_all_is_disabled_nothing_is_reported_as_missing(fresh_registry, monkeypatch):
    monkeypatch.setenv("CLIPSEQ_DISABLE", ",".join(BUILT_IN))
    with pytest.raises(clipseq.UnknownSimilarityError) as caught:
        clipseq.get_similarity("xyz")
    names = ", ".join(sorted(BUILT_IN))
    assert str(caught.value) == (
        f"no similarity named 'xyz'; registered: none (left out by CLIPSEQ_DISABLE: {names})"
    )


def test_a_name_offered_twice_is_an_error_that_names_both(distribution):
    distribution(WORKING.replace('"foo"', '"local"'))
    for look_up in (
        lambda: clipseq.get_similarity("local"),
        clipseq.available_similarities,
        lambda: clipseq.get_similarity("combined"),
        lambda: clipseq.get_similarity("combined", parts={"local": {}}),
        lambda: clipseq.register_similarity("local", Mine),
    ):
        for _ in range(2):
            with pytest.raises(clipseq.PluginError, match="'local' is offered twice") as caught:
                look_up()
            assert f"clipseq {clipseq.__version__}" in str(caught.value)
            assert "clipseq-foo 1.2" in str(caught.value)


def test_a_name_offered_twice_does_not_take_the_others_away(distribution, tmp_path):
    distribution(WORKING.replace('"foo"', '"local"'))
    clipseq.get_similarity("global")
    combined = clipseq.get_similarity("combined", parts={"global": {}, "temporal": {}})
    assert combined.weights == pytest.approx({"global": 0.1, "temporal": 1.0})
    clipseq.register_similarity("mine", Mine)
    clipseq.get_similarity("mine")
    assert clipseq.failed_plugins() == ()
    sizes = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}
    model = clipseq.CLIP({"views": {"a": 4}}, sequence_similarity_type="global", **sizes)
    model.save_pretrained(tmp_path / "model")
    clipseq.CLIP.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="gamma must be positive") as caught:
        clipseq.get_similarity("combined", parts={"temporal": {"gamma": -1.0}})
    assert "raised by the part 'temporal' of clipseq" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match=r"part 'temporal', .* \(it is registered\)"):
        clipseq.get_similarity("combined", parts={"global": {}}).load_state_dict(
            combined.state_dict()
        )
    # The contested name is still suggested.
    with pytest.raises(clipseq.UnknownSimilarityError, match="did you mean 'local'"):
        clipseq.get_similarity("locl")


def test_disabling_one_of_two_settles_a_clash(distribution, monkeypatch):
    distribution(WORKING.replace('"foo"', '"local"'))
    monkeypatch.setenv("CLIPSEQ_DISABLE", "local")
    assert clipseq.available_similarities()["local"].distribution == "clipseq-foo"


@pytest.mark.parametrize("kept", ["clipseq", "clipseq-local"])
def test_a_clash_of_entry_points_is_settled_by_what_the_message_says(
    distribution, monkeypatch, kept
):
    # Both plugins are called "local", so that name would leave out both.
    distribution(WORKING.replace('"foo"', '"local"'), name="local")
    monkeypatch.setenv("CLIPSEQ_DISABLE", "temporal")
    with pytest.raises(clipseq.PluginError) as caught:
        clipseq.get_similarity("local")
    value = re.search(rf"CLIPSEQ_DISABLE=(\S+) keeps that of {kept}\b(?!-)", str(caught.value))[1]
    monkeypatch.setattr(lookup, "_registry", lookup.Registry())
    monkeypatch.setenv("CLIPSEQ_DISABLE", value)
    infos = clipseq.available_similarities()
    assert infos["local"].distribution == kept
    assert set(infos) == BUILT_IN - {"temporal"}


def test_three_offers_of_a_name_are_all_named(distribution):
    distribution(WORKING.replace('"foo"', '"local"'))
    distribution(WORKING.replace('"foo"', '"local"'), name="bar")
    with pytest.raises(clipseq.PluginError, match="'local' is offered 3 times") as caught:
        clipseq.get_similarity("local")
    wanted = "CLIPSEQ_DISABLE=clipseq-bar:bar,clipseq-foo:foo keeps that of clipseq"
    assert str(caught.value).endswith(wanted)


def test_a_broken_plugin_that_is_called_as_another_is_silenced_alone(distribution, monkeypatch):
    distribution("1 / 0", name="local")
    with pytest.warns(clipseq.PluginWarning, match="CLIPSEQ_DISABLE=clipseq-local:local silences"):
        clipseq.available_similarities()
    monkeypatch.setattr(lookup, "_registry", lookup.Registry())
    monkeypatch.setenv("CLIPSEQ_DISABLE", "Clipseq_Local:local")  # as package indexes read it
    assert set(clipseq.available_similarities()) == BUILT_IN


def test_an_unknown_name_suggests_the_nearest(fresh_registry):
    with pytest.raises(clipseq.UnknownSimilarityError) as caught:
        clipseq.get_similarity("locl")
    assert str(caught.value) == (
        "no similarity named 'locl': did you mean 'local'? "
        "registered: attention, combined, global, local, temporal"
    )
    assert isinstance(caught.value, LookupError)
    with pytest.raises(clipseq.UnknownSimilarityError, match="named 'xyz'; registered: attention"):
        clipseq.get_similarity("xyz")


def test_an_unknown_option_suggests_the_nearest():
    with pytest.raises(TypeError, match="'local' has no option 'windw': did you mean 'window'"):
        clipseq.get_similarity("local", windw=3)
    with pytest.raises(TypeError, match="positional argument"):
        clipseq.get_similarity("local", 16)


def test_a_similarity_shows_the_options_it_was_created_with():
    local = clipseq.get_similarity("local", window=7)
    shown = "LocalSimilarity(window=7, stride=1, direction='both')"
    assert repr(local) == repr(copy.deepcopy(local)) == shown
    assert repr(clipseq.get_similarity("temporal")) == "TemporalSimilarity(gamma=0.1)"
    shown = repr(clipseq.get_similarity("combined", parts={"local": {"window": 2}}))
    assert "(part_local): LocalSimilarity(window=2, stride=1, direction='both')" in shown
    assert repr(type(local)()) == "LocalSimilarity()"  # its options are not known


def test_options_are_shown_and_not_kept(distribution):
    distribution(WORKING)
    made = clipseq.get_similarity("foo", size=torch.ones(2, requires_grad=True) * 2)
    assert "size=tensor" in repr(made)
    # A tensor that is not a leaf could not be kept and copied.
    assert repr(copy.deepcopy(made)) == repr(made)


@pytest.mark.parametrize("body", ["pass", "self.embed_dim = None", "nn.Module.__init__(self)"])
def test_an_init_that_leaves_out_that_of_similarity_is_named(distribution, body):
    source = WORKING.replace("super().__init__()", body) + "    from torch import nn\n"
    distribution(source)
    wanted = r"FooSimilarity of clipseq-foo 1.2: its __init__ must call super\(\)\.__init__"
    with pytest.raises(clipseq.PluginError, match=wanted):
        clipseq.get_similarity("foo")
    with pytest.raises(clipseq.PluginError, match=f"the part 'foo' of .*{wanted}"):
        clipseq.get_similarity("combined")
    assert re.search(wanted, diagnose().unmade["foo"])


def test_an_empty_registry_says_that_nothing_is_installed(fresh_registry, monkeypatch):
    monkeypatch.setattr(discovery, "entry_points", lambda group: ([], []))
    with pytest.raises(clipseq.UnknownSimilarityError, match="clipseq is not installed"):
        clipseq.get_similarity("local")


class Mine(clipseq.Similarity):
    """Mine."""

    def score(self, x, y):
        return x.values.new_zeros(len(x.values), len(y.values))

    def align(self, x, y):
        return x.values.new_zeros(len(x.values), x.values.shape[1], y.values.shape[1])


def test_register_in_process(fresh_registry):
    clipseq.register_similarity("mine", Mine)
    assert isinstance(clipseq.get_similarity("mine"), Mine)
    assert clipseq.available_similarities()["mine"].distribution == "this process"
    # The cell of a notebook, run again: another class object of the same name.
    again = type("Mine", (Mine,), {"__module__": __name__, "__doc__": "Two."})
    clipseq.register_similarity("mine", again)
    assert clipseq.available_similarities()["mine"].summary == "Two."


def test_register_keeps_the_rules_of_plugins(fresh_registry, unchecked_signatures):
    with pytest.raises(clipseq.PluginError, match="'local' is registered already by clipseq "):
        clipseq.register_similarity("local", Mine)
    with pytest.raises(clipseq.PluginError, match="must match"):
        clipseq.register_similarity("My-own", Mine)
    with pytest.raises(clipseq.PluginError, match="must be a subclass"):
        clipseq.register_similarity("mine", dict)
    weightless = type("Weightless", (Mine,), {"default_weight": float("nan")})
    with pytest.raises(clipseq.PluginError, match="'mine': default_weight must be .* got nan"):
        clipseq.register_similarity("mine", weightless)
    clipseq.register_similarity("mine", Mine)
    with pytest.raises(clipseq.PluginError, match="registered already by this process"):
        clipseq.register_similarity("mine", type("Other", (Mine,), {"__module__": "elsewhere"}))


def in_fresh_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=True,
    ).stdout


def test_import_loads_no_plugin_and_no_heavy_library():
    loaded = in_fresh_process(
        """
        import sys, clipseq
        print(*sorted({name.split(".")[0] for name in sys.modules}))
        """
    ).split()
    unwanted = {"lightning", "matplotlib", "transformers", "tokenizers", "typer", "rich"}
    unwanted |= {"tensorboard", "huggingface_hub", "hypothesis", "pytest", "scipy", "pandas"}
    assert not unwanted & set(loaded)
    assert not [name for name in loaded if name.startswith("clipseq_")]


def test_plugins_load_at_the_first_look_up():
    loaded = in_fresh_process(
        """
        import sys, clipseq
        clipseq.get_similarity("local", window=16)
        print(*sorted(name for name in sys.modules if name.startswith("clipseq_")))
        """
    )
    assert "clipseq_local" in loaded
    assert "clipseq_temporal" in loaded


def test_some_names_can_be_looked_up_alone(fresh_registry):
    assert list(clipseq.available_similarities(["temporal", "no_such", "local"])) == [
        "local",
        "temporal",
    ]
