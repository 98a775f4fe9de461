"""Check the rules of English that a program can check.

    python .ci/english.py            # the whole project
    python .ci/english.py PATH...    # files or folders

It reads docstrings, comments, error texts and option help in Python files, the prose of Markdown
files, and the comments of TOML, YAML, shell and make files. It prints `file:line: rule N: text` for
each finding and exits with 1 if there is one. The rules:

1. A function's docstring opens with a verb in the imperative, a class's or a property's with a noun
   phrase. None opens with a word such as Of, What, Whether or How.
2. No sentence starts with "Of".
3. Negate with "not": no "is none", "what is no X", "that are no", "has none".
5. An error says `<name> must be <X>, got <Y>; <do Z>`: no "wanted", "told", "beside".
6. Prefer the plain word: "except", "available", "unchanged", "per cell", "report" or "say".

The comment `english: ok` exempts its line and the one below it.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_PATHS = ("clipseq", "plugins", "tests", "benchmarks", "docs", ".ci", ".github", "changes")
SKIPPED_FOLDERS = {"_build", "__pycache__", ".venv", "runs"}
COMMENTED = {".toml", ".yml", ".yaml", ".sh"}
ESCAPE = "english: ok"

FORBIDDEN_OPENINGS = re.compile(
    r"(Of|What|Whether|How|Where|Those|That|So many|And|As|Which|Who|Whoever|Whatever|All that)\b"
)
FORBIDDEN_HELP = re.compile(r"(Of|Those|That|So many|And|As|Which|Who|All that)\b")

# Add a verb here when a docstring needs a new one.
_VERB_LIST = """
abort accept accumulate acquire activate add adjust advance aggregate align allocate allow
alternate announce append apply approximate arrange ask assemble assert assign attach attend
average await
back balance begin benchmark bind blank bound break bring broadcast build
cache calculate call cancel carry cast center centre change check choose chop clamp classify
clean clear clip clone close collapse collate collect combine compare compile complain complete
compose compress compute concatenate configure confirm connect construct consume continue
convert copy correct count cover crash create crop cut
deal decide declare decode decompose deduplicate define delay delete deliver derive describe
deserialise deserialize detach detect determine differentiate disable discard discover dispatch
display distribute divide do document double download drain draw drive drop dump duplicate
embed emit enable encode end enforce ensure enter enumerate erase escape estimate evaluate
examine exchange exclude execute exempt exit expand expect explain export expose express extend
extract
fail fake fall fetch fill filter find finish fit flatten flip flush fold follow forbid force
forget format forward free freeze
gather generate get give go group grow guard guess
halt halve handle hand hash have help hide hold hook
identify ignore implement import include increase index infer inform initialise initialize
insert inspect install instantiate interleave interpolate interpret interrupt invert invoke
issue iterate
join judge jump keep kill
label launch lay learn leave let lift limit line link list listen load localise localize locate
lock log look loop lower
make map mark mask match materialise materialize measure merge mimic mirror mix mock model
modify move multiply mutate
name narrow normalise normalize note notify number
obtain offer omit open optimise optimize order override overwrite
pack pad pair parametrize parse partition pass patch pause peek perform permute persist pick
pin place plan plot point pool pop post predict prefer prepare prepend preserve press pretend
prevent print process produce project promise promote propagate protect prove provide prune
publish pull push put
query quantise quantize quit quote
raise randomise randomize rank read rearrange rebuild receive recognise recognize recompute
reconstruct record recover recurse redirect reduce refer refuse register reject relabel release
reload remember remove rename render reorder repeat replace replay report represent reproduce
request require rerank rerun rescale reserve reset reshape resolve respond restart restore
restrict resume retrieve return reuse reverse rewrite roll rotate round run
sample save say scale scan scatter schedule score search seed see select send separate
serialise serialize serve set settle shard share shift shorten show shrink shuffle shut
silence simulate skip slice slide smooth solve sort space spawn speed spell splice split spread
stack stage standardise standardize start state stay step stop store stream stretch strip
structure style submit subtract suggest sum summarise summarize supply suppress survive swap
switch synchronise synchronize
tabulate take test throw tie tile time tokenise tokenize trace track train transform translate
transpose traverse treat trigger trim truncate try tune turn
undo unfold unfreeze unite unlock unpack unpad unregister unwrap update upload use
validate verify view visit vote
wait wake walk warm warn watch weigh weight widen withdraw work wrap write yield zero zip
"""
VERBS = frozenset(_VERB_LIST.split())

NOUN = r"(?:cells?|pairs?|steps?|items?|clips?|rows?|tiles?|batch|process|rank|epoch|sequence|side)"
SMALL = "(?:of|for|to|in|on|at|by|per|with|from|as|is|or|and|where|that|if|when|has|than)"
PROSE_RULES = (
    (2, re.compile(r"(?:^|[.!?:]\s+|\n\s*\n\s*|^\s*[-*|] |\n\s*[-*|] )(Of\b[^.\n]{0,40})")),
    (
        3,
        re.compile(
            r"(?<!here )\b((?:is|are|was|were|has|have|had) none\b"
            r"|(?:[Ww]hat|that|who|which) (?:is|are|was|were) no (?!longer|more|less|doubt)\w+)"
        ),
    ),
    (6, re.compile(r"\b(but for)\b", re.IGNORECASE)),
    (6, re.compile(r"\b(to be had)\b", re.IGNORECASE)),
    (
        6,
        re.compile(
            r"\b(as (?:it is|they are|it was|they were))(?=\s*(?:[.,;:)]|$))", re.IGNORECASE
        ),
    ),
    # "tell apart" and "tell x from y" are idioms.
    (6, re.compile(r"\b((?:tells?|told|telling)\b)(?!(?:\W+\w+){0,7}?\W+(?:apart|from)\b)", re.I)),
    (
        6,
        re.compile(
            rf"\b((?:bytes?|integers?|floats?|seconds?|ms|[KMG]iB|FLOPs?|one (?!{SMALL}\b)\w+)"
            rf" an? {NOUN})(?=[\s.,;:)]|$)",
            re.IGNORECASE,
        ),
    ),
)
ERROR_RULES = ((5, re.compile(r"\b(wanted|told|beside)\b", re.IGNORECASE)),)


class Finding(NamedTuple):
    """One broken rule at one place."""

    line: int
    rule: int
    text: str


def _without_code(text: str) -> str:
    """Blank out code and quoted phrases, but keep every newline and the length of the text."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", "·", match[0])

    text = re.sub(r"(?ms)^([ \t]*)(```+|~~~+|:::+).*?^\1\2[ \t]*$", blank, text)
    text = re.sub(r"``[^`]+``|`[^`]+`|\"[^\"\n]{1,40}\"", blank, text)
    return re.sub(r"(?s)<!--.*?-->|\$[^$\n]+\$|\]\([^)\n]*\)", blank, text)


def check_prose(text: str, line: int, *, error: bool = False) -> Iterator[Finding]:
    """Yield the violations of rules 2, 3 and 6 in a text that starts in `line`, and of 5 in an
    error."""
    plain = _without_code(text)
    rules = [rule for rule in PROSE_RULES if not (error and "tells" in rule[1].pattern)]
    for rule, pattern in [*rules, *(ERROR_RULES if error else ())]:
        for found in pattern.finditer(plain):
            shown = " ".join(text[found.start(1) : found.end(1) + 30].split())
            yield Finding(line + plain.count("\n", 0, found.start(1)), rule, shown)


def _opening(text: str) -> str:
    return " ".join(text.split()[:5])


def _is_noun_like(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    # A property names a value and a test states a fact; pytest lists fixtures like values.
    decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
    named = re.search(r"\b(cached_)?property\b|\bfixture\b|\.setter\b", decorators)
    return bool(named) or node.name.startswith("test_")


def check_docstring(node: ast.AST, text: str, line: int) -> Iterator[Finding]:
    """Yield the violations in the docstring of a module, class, function or constant."""
    opening = _opening(text)
    if FORBIDDEN_OPENINGS.match(opening):
        yield Finding(line, 1, f"must not open with {opening!r}")
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_noun_like(node):
        word = re.split(r"[^\w-]", opening + " ")[0]
        is_noun = opening.startswith(f"{word} of ")  # as in "Number of cells"
        if is_noun or not word[:1].isupper() or word.lower() not in VERBS:
            yield Finding(
                line, 1, f"{node.name} must open with a verb as in 'Return', got {opening!r}"
            )
    yield from check_prose(text, line)


def _text_of(node: ast.AST) -> str | None:
    """Return the text of a string or f-string, with `·` for each value in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (v.value if isinstance(v, ast.Constant) else "·" for v in node.values)
        return "".join(map(str, parts))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_text_of(node.left) or "·") + (_text_of(node.right) or "·")
    return None


def _strings(node: ast.AST) -> Iterator[tuple[str, int]]:
    text = _text_of(node)
    if text is not None:
        yield text, getattr(node, "lineno", 1)
        return
    for child in ast.iter_child_nodes(node):
        yield from _strings(child)


def _name_of(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def _docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int]]:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or not body or isinstance(node, ast.Lambda):
            continue
        owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for before, statement in zip([None, *body[:-1]], body, strict=True):
            if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
                continue
            text = statement.value.value
            if not isinstance(text, str):
                continue
            if before is None and isinstance(node, owners):
                yield node, text, statement.lineno
            elif isinstance(before, ast.Assign | ast.AnnAssign):
                yield before, text, statement.lineno


def _comments(source: str) -> Iterator[tuple[str, int]]:
    """Yield each run of comment lines as one text, with the line in which it starts."""
    lines: list[str] = []
    start = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        row, column = token.start
        alone = not token.line[:column].strip()
        if lines and row == last + 1 and alone:
            lines.append(token.string.lstrip("# "))
        else:
            if lines:
                yield "\n".join(lines), start
            lines, start = [token.string.lstrip("# ")], row
        last = row
    if lines:
        yield "\n".join(lines), start


def check_python(source: str) -> Iterator[Finding]:
    """Yield the violations in a Python file."""
    tree = ast.parse(source)
    for node, text, line in _docstrings(tree):
        yield from check_docstring(node, text, line)
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            for text, line in _strings(node.exc):
                yield from check_prose(text, line, error=True)
        elif isinstance(node, ast.Call):
            if _name_of(node) == "warn":
                for text, line in _strings(node):
                    yield from check_prose(text, line, error=True)
            for keyword in node.keywords:
                if keyword.arg in ("help", "description", "epilog"):
                    for text, line in _strings(keyword.value):
                        if FORBIDDEN_HELP.match(text.lstrip()):
                            yield Finding(line, 2, f"help must not open with {_opening(text)!r}")
                        yield from check_prose(text, line)
    for text, line in _comments(source):
        yield from check_prose(text, line)


def check_markdown(source: str) -> Iterator[Finding]:
    """Yield the violations in the prose of a Markdown file."""
    yield from check_prose(source, 1)


def check_comments(source: str) -> Iterator[Finding]:
    """Yield the violations in the `#` comments of any other file."""
    found = (
        (number, line.partition("# ")[2] or "")
        for number, line in enumerate(source.splitlines(), 1)
        if re.match(r"\s*# |.*\s# ", line)
    )
    for number, comment in found:
        yield from check_prose(comment, number)


def check_file(path: Path) -> list[Finding]:
    """Return the findings of one file, in the order of its lines."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        findings = check_python(source)
    elif path.suffix == ".md":
        findings = check_markdown(source)
    else:
        findings = check_comments(source)
    lines = ["", *source.splitlines()]
    exempt = {n + below for n, line in enumerate(lines) if ESCAPE in line for below in (0, 1)}
    kept = {finding for finding in findings if finding.line not in exempt}
    return sorted(kept)


def is_checked(path: Path) -> bool:
    """Say whether a file is of a kind that has prose to check."""
    return path.suffix in {".py", ".md", *COMMENTED} or path.name in ("Makefile", "run")


def files_below(paths: list[Path]) -> Iterator[Path]:
    """Yield every checked file among the paths and below them."""
    for path in paths:
        if path.is_file():
            if is_checked(path):
                yield path
            continue
        for found in sorted(path.rglob("*")):
            inside = found.relative_to(path).parts
            if found.is_file() and is_checked(found) and not SKIPPED_FOLDERS & set(inside):
                yield found


def default_paths() -> list[Path]:
    """Return the folders of the project and the files at its top."""
    folders = [ROOT / name for name in DEFAULT_PATHS if (ROOT / name).is_dir()]
    return [*folders, *sorted(p for p in ROOT.iterdir() if p.is_file() and is_checked(p))]


def main(arguments: list[str]) -> int:
    """Print the findings and return the exit status."""
    paths = [Path(argument) for argument in arguments] or default_paths()
    count = 0
    for path in files_below(paths):
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        for finding in check_file(path):
            count += 1
            print(f"{shown}:{finding.line}: rule {finding.rule}: {finding.text}")
    if count:
        print(f"{count} sentences break the rules of English (see .ci/english.py)", file=sys.stderr)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
