"""The source itself: imports go down the rooms, nothing can run foreign code or touch a global generator."""

import ast
import functools
import importlib
import inspect
import re
from pathlib import Path
from types import FunctionType

import pytest

import zofo
from zofo.adapters import ADAPTERS
from zofo.estimators import ESTIMATORS
from zofo.evaluators import EVALUATORS
from zofo.methods import METHODS
from zofo.noise import MASKS, NOISES
from zofo.objectives import OBJECTIVES
from zofo.rules import RULES
from zofo.tasks import METRICS

SOURCE = Path(zofo.__file__).parent
ROOMS = [  # top to bottom; rooms on one line are beside each other
    ["cli"],
    ["demo"],
    ["studies", "testing", "report"],
    ["estimate"],
    ["bench", "export", "integrations"],
    ["training"],
    ["trajectory", "optim"],
    ["methods"],
    ["estimators", "rules"],
    ["evaluators"],
    ["adapters", "objectives"],
    ["tasks"],
    ["backbone"],
    ["models"],
    ["embedded", "recipes"],
    ["state_dict"],
    ["noise", "displacement"],
    ["config"],
    ["registry", "retired_keys", "trees"],
    ["plugins"],
    ["filesystem", "interpreters", "fork_server", "hub", "processes", "signals", "significance", "threads"],
    ["temporary"],
    ["errors"],
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
BESIDE = {("rules", "estimators"), ("noise", "displacement")}
ONLY_IN = {"peft": "adapters", "datasets": "tasks"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.manual_seed",
    "torch.seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.random.manual_seed",
    "torch.set_rng_state",
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
    "transformers.set_seed",
    "accelerate.utils.set_seed",
}


def room_of(module: str) -> str:
    """The part after `zofo`; the package itself, which imports everything, is above all rooms."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "zofo"


def imports(tree: ast.AST, package: str) -> list[tuple[int, str]]:
    """Line and full name of every import, wherever it stands; relative ones resolved against `package`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            if base == "zofo":
                found += [(node.lineno, f"zofo.{a.name}" if a.name in LEVEL else "zofo") for a in node.names]
            else:
                found.append((node.lineno, base))
    return found


def import_faults(text: str, module: str, package: str) -> list[str]:
    """What is wrong with the imports of a module."""
    own, faults = room_of(module), []
    for line, name in imports(parsed(text), package):
        outside = name.split(".")[0]
        if outside in ONLY_IN and own != ONLY_IN[outside]:
            faults.append(f"{module}:{line} imports {outside}, which only {ONLY_IN[outside]} may")
        if outside != "zofo" or own == "zofo" or own == "__main__":
            continue
        other = room_of(name)
        if other not in LEVEL:
            faults.append(f"{module}:{line} imports {name}, which is in no room")
        elif other != own and LEVEL[other] <= LEVEL[own] and (own, other) not in BESIDE:
            faults.append(f"{module}:{line} imports {name}, which is not below {own}")
    return faults


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def danger_faults(text: str, module: str) -> list[str]:
    """What a module does that could run foreign code, or that writes a global generator."""
    faults, tree = [], parsed(text)
    full = {}  # what a name imported with `from` or `as` stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            full |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            full |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            faults += [f"{module}:{node.lineno} {n}" for n in names if n.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.Call):
            first, _, rest = dotted(node.func).partition(".")
            name = ".".join(filter(None, [full.get(first, first), rest]))
            if name in FORBIDDEN_CALLS:
                faults.append(f"{module}:{node.lineno} {name}")
            for keyword in node.keywords:
                if keyword.arg == "shell" and getattr(keyword.value, "value", True) is not False:
                    faults.append(f"{module}:{node.lineno} shell")
    return faults


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ["zofo", *path.relative_to(SOURCE).with_suffix("").parts]
        package = parts[:-1]
        if parts[-1] == "__init__":
            parts = package
        yield path.read_text(encoding="utf-8"), ".".join(parts), ".".join(package)


MODULES = list(modules())
"""Each with its text, its name and its package."""

parsed = functools.cache(ast.parse)


@pytest.fixture(autouse=True, scope="module")
def trees_let_go():
    """Those of all of the source are a million objects, through which each later collection of garbage would go."""
    yield
    parsed.cache_clear()


def test_imports_go_only_down_and_each_outside_library_is_in_its_room():
    assert [fault for one in MODULES for fault in import_faults(*one)] == []


@pytest.mark.promise(12)
def test_no_module_can_run_foreign_code_or_seed_a_global_generator(tries):
    assert [fault for text, module, _ in MODULES for fault in danger_faults(text, module)] == []
    tries(len(MODULES))


def test_every_folder_and_file_of_the_package_is_a_room():
    found = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found - {"__init__", "__main__"} == set(LEVEL)


@pytest.mark.parametrize(
    ("module", "package", "line"),
    [
        ("zofo.noise.base", "zofo.noise", "from zofo.backbone import Backbone"),
        ("zofo.backbone.backbone", "zofo.backbone", "import zofo.training.run_folder"),
        ("zofo.estimators", "zofo", "from zofo.rules import Rule"),
        ("zofo.displacement", "zofo", "from zofo.noise import Noise"),
        ("zofo.adapters.lora", "zofo.adapters", "from zofo.objectives import classification_loss"),
        ("zofo.errors", "zofo", "from . import registry"),
        ("zofo.noise.base", "zofo.noise", "from ..methods.base import Method"),
        ("zofo.tasks.batches", "zofo.tasks", "from zofo import load_model"),
        ("zofo.tasks", "zofo.tasks", "def f():\n    import zofo"),
        ("zofo.tasks.batches", "zofo.tasks", "from zofo.somewhere import thing"),
        ("zofo.methods.mezo", "zofo.methods", "import peft"),
        ("zofo.adapters.lora", "zofo.adapters", "from datasets import load_dataset"),
    ],
)
def test_the_import_check_reports_a_made_up_fault(module, package, line):
    (fault,) = import_faults("import torch\n" + line + "\n", module, package)
    assert fault.startswith(f"{module}:{3 if 'def' in line else 2} imports ")


def test_the_import_check_allows_what_the_rooms_allow():
    allowed = "from zofo.estimators import Estimate\nfrom zofo.rules import State\nfrom zofo import errors\n"
    assert import_faults(allowed, "zofo.rules", "zofo") == []
    assert import_faults("import peft", "zofo.adapters.lora", "zofo.adapters") == []


@pytest.mark.promise(12)
@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load\nload('x')",
        "import torch as t\nt.load('x')",
        "eval('1')",
        "exec('1')",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
        "import yaml\nyaml.load(text)",
        "torch.manual_seed(0)",
        "import numpy as np\nnp.random.seed(0)",
        "from random import seed\nseed(0)",
        "os.system('ls')",
    ],
)
def test_the_danger_check_reports_a_made_up_fault(text):
    assert len(danger_faults(text, "made.up")) == 1


def test_the_danger_check_allows_an_attribute_called_eval_and_a_safe_load():
    assert danger_faults("model.eval()\nyaml.safe_load(text)\nrun(x, shell=False)", "made.up") == []


def test_public_names_are_listed_once_in_order_and_exist():
    assert zofo.__all__ == sorted(zofo.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert set(zofo.__all__) == set(zofo._HOME_OF)
    assert len(set(zofo.__all__)) == len(zofo.__all__)
    assert all(hasattr(zofo, name) for name in zofo.__all__)


@pytest.mark.parametrize("name", zofo.__all__)
def test_every_public_name_and_public_method_has_a_docstring_of_its_own(name):
    part = getattr(zofo, name)
    documented = vars(part).get("__doc__") if inspect.isclass(part) else part.__doc__
    assert documented
    assert not documented.startswith(f"{name}(")  # what a dataclass makes up
    if inspect.isclass(part):
        methods = [m for n, m in vars(part).items() if not n.startswith("_") and inspect.isfunction(m)]
        assert all(inspect.getdoc(method) or inspect.getdoc(getattr(part, method.__name__)) for method in methods)


def test_every_public_method_has_a_docstring_unless_it_overrides_one_that_has():
    for name in {module for _, module, _ in MODULES} - {"zofo.__main__"}:
        for part in vars(importlib.import_module(name)).values():
            if not inspect.isclass(part) or part.__module__ != name or part.__name__.startswith("_"):
                continue
            for method, value in vars(part).items():
                code = getattr(value, "fget", None) or getattr(value, "__func__", value)
                if isinstance(code, FunctionType) and code.__name__ == method and not method.startswith("_"):
                    above = any(getattr(getattr(base, method, None), "__doc__", None) for base in part.__mro__[1:])
                    assert value.__doc__ or above, (name, part.__name__, method)


def test_no_docstring_only_points_at_another():
    for path in sorted(SOURCE.rglob("*.py")):
        assert not re.search(r'"""See `[\w.]+`\.?"""', path.read_text(encoding="utf-8")), path


def test_the_map_for_contributors_names_every_room_from_top_to_bottom():
    text = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| room |") : text.index("## How to add")]
    rooms = " ".join(line.split("|")[1] for line in table.splitlines() if line.strip())
    named = re.findall(r"`(\w+)`", rooms)
    assert sorted(named) == sorted(LEVEL)
    assert [LEVEL[room] for room in named] == sorted(LEVEL.values())


MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 400, 60


def test_files_and_functions_are_short():
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= MOST_LINES_OF_A_FILE, path
        for node in ast.walk(parsed(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < MOST_LINES_OF_A_FUNCTION, (path, node.name)


REGISTRIES = (NOISES, MASKS, ESTIMATORS, RULES, EVALUATORS, METHODS, ADAPTERS, OBJECTIVES, METRICS)
PARTS = [(name, part) for registry in REGISTRIES for name, part in registry._parts.items()]
NAMES = {name for name, _ in PARTS}
CLASSES = {part.__name__ for _, part in PARTS if inspect.isclass(part)}
CONFIGS = {part.Config.__name__ for _, part in PARTS if hasattr(part, "Config")}
ASKED_ALL_THE_SAME = {
    ("zofo.tasks.prompt_templates", "random"),  # a filter of Jinja, not the mask
    ("zofo.bench.step_variants", "InForward"),  # it has just built the part whose cost it measures
}


def names_asked_for(text: str, module: str) -> list[str]:
    """Where a module compares a name with that of a registered part, or asks for an instance of such a class."""
    tree, faults, lists = parsed(text), [], {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            lists[node.targets[0].id] = texts_of(node.value, {})
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(is_a_name(side) for side in sides):
                found = {text for side in sides for text in texts_of(side, lists)} & NAMES
                faults += [f"{module}:{node.lineno} {name}" for name in sorted(found)]
        elif isinstance(node, ast.Call) and dotted(node.func) in ("isinstance", "issubclass"):
            asked = {dotted(one).rpartition(".")[2] for one in ast.walk(node.args[1])}
            faults += [f"{module}:{node.lineno} {name}" for name in sorted(asked & (CLASSES | CONFIGS))]
    return [one for one in faults if (module, one.rpartition(" ")[2]) not in ASKED_ALL_THE_SAME]


def is_a_name(node: ast.AST) -> bool:
    """Whether an expression is what a part is called: `x.name`, `name`, `x.get("name")`, `x["name"]`."""
    if isinstance(node, ast.Call) and dotted(node.func).endswith(".get"):
        return "name" in texts_of(node.args[0], {})
    if isinstance(node, ast.Subscript):
        return "name" in texts_of(node.slice, {})
    return dotted(node).rpartition(".")[2].rpartition("_")[2] == "name"


def texts_of(node: ast.AST, lists: dict[str, set[str]]) -> set[str]:
    """The literal texts of an expression: one, those of a tuple, list or set, or of a constant that holds them."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return {text for one in node.elts for text in texts_of(one, lists)}
    return lists.get(node.id, set()) if isinstance(node, ast.Name) else set()


def test_no_module_asks_for_a_part_by_its_name():
    faults = [(module, one) for text, module, _ in MODULES for one in names_asked_for(text, module)]
    assert [(module, one) for module, one in faults if not defines(module, one)] == []


def defines(module: str, fault: str) -> bool:
    """Whether what a fault names is defined in the module itself."""
    name = fault.rpartition(" ")[2]
    parts = [part for known, part in PARTS if name in (known, getattr(part, "__name__", None))]
    return any(part.__module__ == module for part in parts)


@pytest.mark.parametrize(
    "line",
    [
        'if rule.name == "sgd": pass',
        'if config.adapter.name not in ("lora", "dora"): pass',
        'SOME = ("lora", "dora")\nif config.adapter.name in SOME: pass',
        'if noise.get("name", default) == "low-rank": pass',
        'if given["name"] != "mezo": pass',
        'if method_name == "in-context": pass',
        "if isinstance(noise, LowRank | Masked): pass",
        "if issubclass(kind, methods.MeZOConfig): pass",
    ],
)
def test_the_check_of_names_reports_a_made_up_fault(line):
    assert names_asked_for(line, "zofo.made.up")


def test_the_check_of_names_allows_other_comparisons():
    allowed = (
        'task.kind == "classification"\nfile.name == "config.yaml"\nisinstance(noise, FactoredNoise)\nname == given'
    )
    assert names_asked_for(allowed, "zofo.made.up") == []


def test_retired_names_do_not_come_back():
    lines = (Path(__file__).parent / "retired_names.txt").read_text(encoding="utf-8").splitlines()
    retired = dict(line.split() for line in lines if not line.startswith("#"))
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.name not in retired, f"{path}:{node.lineno}: {node.name} is {retired[node.name]} now"
                refuses = node.name.lstrip("_").startswith("refuse_")
                assert not refuses, f"{path}:{node.lineno}: {node.name}: what raises is called check_..."
