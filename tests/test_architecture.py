"""The rules of the house that import-linter cannot say, read from the syntax tree of every module.

Each rule is also seen to bite, on a line that breaks it.
"""

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fed_diffmic", "server", "client", "simulations", "configs")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# What users of Flower are meant to import; everything else is internal and lives in transport/ alone.
FLOWER_PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation")
PICKLES = {"_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# The only reader of a pickle, which can build nothing but plain containers, strings and numbers.
PICKLE_READER = "fed_diffmic/data/plain_pickle.py"
PICKLE_ERRORS = {"UnpicklingError", "PickleError"}


@functools.lru_cache(maxsize=2)  # one module at a time: several rules ask for the same
def nodes(tree: ast.AST) -> tuple[ast.AST, ...]:
    """Everything in a module."""
    return tuple(ast.walk(tree))


@functools.lru_cache(maxsize=2)
def imports(tree: ast.AST) -> tuple[tuple[int, str], ...]:
    """Line and dotted name of everything imported (``from a import b`` gives ``a`` and ``a.b``)."""
    found: list[tuple[int, str]] = []
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            found += ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append((node.lineno, node.module))
            found += ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
    return tuple(found)


@functools.lru_cache(maxsize=2)
def calls(tree: ast.AST) -> tuple[tuple[ast.Call, str], ...]:
    """Every call with the dotted name of what is called; of what has none (``f()()``) nothing is in its place."""
    return tuple((node, dotted(node.func)) for node in nodes(tree) if isinstance(node, ast.Call))


def dotted(node: ast.expr) -> str:
    """``a.b.c`` as it is written, or nothing."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(names)]) if isinstance(node, ast.Name) else ""


def below(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def flower_internals(tree: ast.AST, where: str) -> Iterator[int]:
    if where.startswith("fed_diffmic/transport/"):
        return
    for line, name in imports(tree):
        if below(name, ("flwr",)) and name != "flwr" and not below(name, FLOWER_PUBLIC):
            yield line


def unpickling(tree: ast.AST, where: str) -> Iterator[int]:
    if where != PICKLE_READER:
        yield from (line for line, name in imports(tree) if name.split(".")[0] in PICKLES)
        yield from pickle_used(tree)
    for call, name in calls(tree):
        given = {k.arg: k.value for k in call.keywords}
        if name in ("torch.load", "load") and _is_torch_load(tree, name):
            value = given.get("weights_only")
            if not (isinstance(value, ast.Constant) and value.value is True):
                yield call.lineno
        if name in ("np.load", "numpy.load") and "allow_pickle" in given:
            yield call.lineno
        if name in ("pd.read_pickle", "pandas.read_pickle", "yaml.unsafe_load", "yaml.full_load"):
            yield call.lineno


def pickle_used(tree: ast.AST) -> Iterator[int]:
    """Every use of ``pickle`` but naming what it may raise."""
    for node in nodes(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "pickle" and node.attr not in PICKLE_ERRORS:
                yield node.lineno
        elif isinstance(node, ast.Import):
            yield from (node.lineno for alias in node.names if alias.name == "pickle" and alias.asname)
        elif isinstance(node, ast.ImportFrom) and node.module == "pickle":
            yield from (node.lineno for alias in node.names if alias.name not in PICKLE_ERRORS)


def _is_torch_load(tree: ast.AST, name: str) -> bool:
    return name == "torch.load" or any(imported == "torch.load" for _, imported in imports(tree))


def code_from_text(tree: ast.AST, where: str) -> Iterator[int]:
    for call, name in calls(tree):
        if name in ("eval", "exec", "compile", "builtins.eval", "builtins.exec", "os.system", "os.popen"):
            yield call.lineno
        if any(
            k.arg == "shell" and not (isinstance(k.value, ast.Constant) and k.value.value is False)
            for k in call.keywords
        ):
            yield call.lineno


SERVICE = ("fed_diffmic/commands/serve.py", "fed_diffmic/inference/prompt.py")
"""``fed-diffmic serve``, on loopback unless it is told otherwise (tests/commands/test_serve.py)."""


def listening(tree: ast.AST, where: str) -> Iterator[int]:
    if where.startswith("fed_diffmic/transport/") or where in SERVICE:
        return  # what is heard where is tested there, with real sockets
    for line, name in imports(tree):
        if name.split(".")[0] in ("socketserver", "uvicorn", "fastapi", "flask", "aiohttp") or below(
            name, ("http.server",)
        ):
            yield line
    for node in nodes(tree):
        if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
            yield node.lineno
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("listen", "create_server", "start_server")
        ):
            yield node.lineno


def silence(tree: ast.AST, where: str) -> Iterator[int]:
    for node in nodes(tree):
        if isinstance(node, ast.ExceptHandler):
            everything = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            if node.type is None or (everything and all(isinstance(s, (ast.Pass, ast.Continue)) for s in node.body)):
                yield node.lineno


Rule = Callable[[ast.AST, str], Iterator[int]]
RULES: list[Rule] = [flower_internals, unpickling, code_from_text, listening, silence]


@pytest.fixture(scope="module")
def broken() -> dict[str, list[str]]:
    """Where each rule is broken; every module is read once for all of them."""
    found: dict[str, list[str]] = {rule.__name__: [] for rule in RULES}
    for path in MODULES:
        tree, where = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix()
        for rule in RULES:
            found[rule.__name__] += [f"{where}:{line}" for line in rule(tree, where)]
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_keeps(rule, broken):
    assert len(MODULES) > 30
    assert broken[rule.__name__] == []


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (flower_internals, "import flwr.supercore.utils"),
        (flower_internals, "from flwr.common import ndarrays_to_parameters"),
        (flower_internals, "from flwr.server.strategy import FedAvg"),
        (flower_internals, "from flwr import proto"),
        (unpickling, "import pickle\npickle.loads(b)"),
        (unpickling, "import pickle as p"),
        (unpickling, "from pickle import loads"),
        (unpickling, "from joblib import load"),
        (unpickling, "torch.load('x')"),
        (unpickling, "torch.load('x', weights_only=False)"),
        (unpickling, "torch.load('x', weights_only=flag)"),
        (unpickling, "from torch import load\nload('x')"),
        (unpickling, "np.load('x', allow_pickle=True)"),
        (unpickling, "pd.read_pickle('x')"),
        (code_from_text, "eval('1')"),
        (code_from_text, "exec('1')"),
        (code_from_text, "subprocess.run('x', shell=True)"),
        (listening, "s.listen()"),
        (listening, "import uvicorn"),
        (listening, "host = '0.0.0.0'"),
        (silence, "try: f()\nexcept: g()"),
        (silence, "try: f()\nexcept Exception: pass"),
    ],
)
def test_each_rule_bites(rule, line):
    assert list(rule(ast.parse(line), "fed_diffmic/x.py"))


@pytest.mark.parametrize(
    ("rule", "line", "where"),
    [
        (flower_internals, "from flwr.serverapp.strategy import FedAvg", "server/x.py"),
        (flower_internals, "from flwr.app import Message", "client/x.py"),
        (flower_internals, "import flwr", "client/x.py"),
        (flower_internals, "import flwr.supercore", "fed_diffmic/transport/x.py"),
        (unpickling, "torch.load('x', weights_only=True)", "fed_diffmic/x.py"),
        (unpickling, "import pickle\npickle.Unpickler(f)", PICKLE_READER),
        (unpickling, "import pickle\ntry: f()\nexcept pickle.UnpicklingError: g()", "fed_diffmic/x.py"),
        (silence, "try: f()\nexcept OSError: pass", "fed_diffmic/x.py"),
        (code_from_text, "model.eval()", "fed_diffmic/x.py"),
    ],
)
def test_what_is_allowed_is_not_caught(rule, line, where):
    assert not list(rule(ast.parse(line), where))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_says_what_it_is_and_stays_readable(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no docstring"
    long = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno + 1 - _docstring_lines(node) > 80
    }
    assert long == {}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return (first.end_lineno or 0) - first.lineno + 1 if is_text else 0


def test_tests_have_no_packages():
    """With import mode importlib a package among the tests would shadow the code it mirrors."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []
