"""The set-up takes the right Python, does its work once, and never passes off half of it as whole.

The interpreters are stand-ins: they run the questions of launch/setup.sh in the real Python, with
another version or without a module, and only note down what they were asked to install.
"""

import ast
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import time
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TOOLS = ("sh", "cat", "cksum", "cp", "cut", "dirname", "grep", "head", "mkdir", "rm", "sleep")
TOOLS += ("sort", "tr")


class Machine:
    """A folder with a copy of the set-up, and a PATH on which nothing stands but TOOLS."""

    def __init__(self, folder):
        self.folder = folder
        self.path = folder / "path"
        self.path.mkdir()
        for tool in TOOLS:
            (self.path / tool).symlink_to(shutil.which(tool))
        (folder / "launch").mkdir()
        shutil.copy(ROOT / "launch" / "setup.sh", folder / "launch")
        (folder / "requirements.txt").write_text("one\n")
        (folder / "requirements-dev.txt").write_text("two\n")

    def add(self, place, version, missing=(), release="final"):
        """Installs a stand-in for the Python `version` at `place`, a path inside the folder."""
        file = self.folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        numbers = tuple(int(number) for number in version.split("."))
        preamble = (
            "import collections, sys; "
            "Version = collections.namedtuple('Version', 'major minor micro releaselevel serial'); "
            f"sys.version_info = Version(*{numbers}, '{release}', 0); "
            f"sys._base_executable = '{file}'; "
            f"sys.modules.update(dict.fromkeys({tuple(missing)}))"
        )
        file.write_text(f"""#!/bin/sh
case "$1 $2" in
-V*) echo Python {version} ;;
-c*) exec {sys.executable} -I -S -c "{preamble}
$2" ;;
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo venv {version} >>log ;;
"-m pip") echo pip $(cat requirements*.txt) >>log; shift 2; echo "$@" >>pip_arguments
    [ ! -e slow ] || sleep 3
    [ ! -e broken ] ;;
esac
""")
        file.chmod(0o755)

    def start(self, *files, **variables):
        """Starts the set-up of these requirements files."""
        environment = {
            "PATH": str(self.path),
            "PYENV_ROOT": str(self.folder / "pyenv"),
            **variables,
        }
        return subprocess.Popen(
            ["launch/setup.sh", *files],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def set_up(self, *files, **variables):
        """Runs the set-up to its end; returns its exit status and what it wrote to stderr."""
        process = self.start(*files, **variables)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def log(self):
        """Returns which environments were made and which installations were run, in order."""
        file = self.folder / "log"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line if line.startswith("venv") else "pip" for line in lines]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_newest_python_wins_wherever_it_stands(machine):
    machine.add("path/python3.11", "3.11.9")
    machine.add("path/python3", "3.12.1")
    machine.add("pyenv/versions/3.13.0/bin/python", "3.13.0")
    machine.add("pyenv/versions/3.9.1/bin/python", "3.9.1")
    assert machine.set_up() == (0, "")
    assert machine.log() == ["venv 3.13.0", "pip"]


def test_python_that_cannot_serve_is_passed_over(machine):
    shim = machine.path / "python3.13"  # of pyenv, with no version behind it
    shim.write_text("#!/bin/sh\necho 'pyenv: python3.13: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    machine.add("path/python3.12", "3.12.4", missing=["ssl"])
    machine.add("path/python3", "3.14.0")
    machine.add("pyenv/versions/3.13.1/bin/python", "3.13.1", release="candidate")
    machine.add("pyenv/versions/3.11.7/bin/python", "3.11.7")
    assert machine.set_up() == (0, "")
    assert machine.log() == ["venv 3.11.7", "pip"]


def test_no_python_is_one_sentence(machine):
    machine.add("path/python3", "3.10.2")
    status, errors = machine.set_up()
    assert status == 3
    assert errors.count("\n") == 1 and "no working Python 3.11, 3.12 or 3.13" in errors


@pytest.mark.parametrize(
    ("python", "reason"),
    [
        ("python3", "is Python 3.10.2, but hmtl_jax needs 3.11, 3.12 or 3.13"),
        ("python3.12", "without the module ensurepip"),
        ("python4", "does not run"),
        ("3.13", "no working Python 3.13 "),
    ],
)
def test_python_that_was_asked_for_and_will_not_do(machine, python, reason):
    machine.add("path/python3", "3.10.2")
    machine.add("path/python3.11", "3.11.2")
    machine.add("path/python3.12", "3.12.2", missing=["ensurepip"])
    assert machine.set_up() == (0, "")
    status, errors = machine.set_up(PYTHON=python)
    assert status == 3
    assert errors.count("\n") == 1 and reason in errors
    assert machine.set_up() == (0, "")
    assert machine.log() == ["venv 3.11.2", "pip"]  # what was there has stayed


def test_python_that_was_asked_for_is_taken_and_kept(machine):
    machine.add("path/python3.13", "3.13.0")
    machine.add("path/python3.12", "3.12.1")
    machine.set_up()
    machine.set_up(PYTHON="3.12")
    machine.set_up(PYTHON=str(machine.path / "python3.12"))
    machine.set_up()
    assert machine.log() == ["venv 3.13.0", "pip", "venv 3.12.1", "pip"]


def test_every_file_is_installed_once_until_it_changes(machine):
    machine.add("path/python3", "3.12.1")
    for _ in range(2):
        machine.set_up()
    assert machine.log() == ["venv 3.12.1", "pip"]
    for _ in range(2):
        machine.set_up("requirements-dev.txt")
        machine.set_up()
    assert machine.log() == ["venv 3.12.1", "pip", "pip"]
    (machine.folder / "requirements.txt").write_text("one<2\n")
    for _ in range(2):
        machine.set_up("requirements-dev.txt")
    assert machine.log() == ["venv 3.12.1", "pip", "pip", "pip"]
    arguments = (machine.folder / "pip_arguments").read_text().splitlines()
    assert arguments[0].endswith(" -r requirements.txt")
    assert arguments[-1].endswith(" -r requirements.txt -r requirements-dev.txt")


def test_set_up_that_failed_is_made_again_from_nothing(machine):
    machine.add("path/python3", "3.12.1")
    (machine.folder / "broken").touch()
    status, errors = machine.set_up()
    assert status == 1 and "run the same command again" in errors
    (machine.folder / "broken").unlink()
    assert machine.set_up() == (0, "")
    assert machine.log() == ["venv 3.12.1", "pip"] * 2


def until(condition):
    """Waits until `condition()` holds; fails after ten seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_set_up_that_was_killed_is_made_again_from_nothing(machine):
    machine.add("path/python3", "3.12.1")
    (machine.folder / "slow").touch()
    process = machine.start()
    until(lambda: machine.log() == ["venv 3.12.1", "pip"])
    process.kill()
    process.communicate()
    (machine.folder / "slow").unlink()
    assert machine.set_up() == (0, "")
    assert machine.log() == ["venv 3.12.1", "pip"] * 2


def test_two_at_once_set_up_once(machine):
    machine.add("path/python3", "3.12.1")
    (machine.folder / "slow").touch()
    first = machine.start()
    until(lambda: machine.log() == ["venv 3.12.1", "pip"])
    second = machine.start()
    assert first.wait(timeout=60) == 0
    output, errors = second.communicate(timeout=60)
    first.communicate()
    assert (second.returncode, errors) == (0, "")
    assert "waiting for it" in output
    assert machine.log() == ["venv 3.12.1", "pip"]


def test_unknown_requirements_file_is_one_sentence(machine):
    status, errors = machine.set_up("requirements-gpu.txt")
    assert status == 2
    assert errors.count("\n") == 1 and "no requirements file requirements-gpu.txt" in errors


def requirements(name):
    """Returns the lines of a requirements file without comments."""
    lines = (ROOT / name).read_text().splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def distribution(requirement):
    """Returns the canonical name of the package that a requirement asks for."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


@pytest.mark.parametrize(
    "name",
    [
        "requirements.txt",
        *(f"requirements-{part}.txt" for part in ("dev", "video", "bench", "onnx")),
    ],
)
def test_every_requirement_has_an_upper_bound(name):
    for requirement in requirements(name):
        assert re.search(r"(>=[\d.]+,<[\d.]+|==[\d.]+)$", requirement), requirement


def imported_packages(folder):
    """Returns the packages outside the standard library that the modules under `folder` import."""
    trees = [ast.parse(file.read_text()) for file in (ROOT / folder).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    tops = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    return tops - {"hmtl_jax", "configs", "benchmarks", "experiments"}


def imported_distributions(*folders):
    """Returns the canonical names of the distributions that those packages come from."""
    packages = importlib.metadata.packages_distributions()
    tops = {top for folder in folders for top in imported_packages(folder)}
    return {distribution(name) for top in tops for name in packages.get(top, [top])} - {"jaxlib"}


def required_distributions(*names):
    """Returns the canonical names of what these requirements files ask for."""
    return {distribution(requirement) for name in names for requirement in requirements(name)}


def test_what_is_imported_is_required_and_what_is_required_is_imported():
    imported = imported_distributions("hmtl_jax", "configs", "experiments")
    files = [f"requirements{part}.txt" for part in ("", "-video", "-onnx")]
    required = required_distributions(*files)
    needed_by_others = {"array-record", "importlib-resources", "flatbuffers"}  # by TFDS and by JAX
    needed_by_others |= {"onnx", "onnx-ir", "sympy", "mpmath", "protobuf"}  # by jax2onnx
    assert imported - required == set()
    assert required - imported - needed_by_others == set()


def test_what_tests_and_benchmarks_import_is_required():
    files = [f"requirements{part}.txt" for part in ("", "-dev", "-video", "-bench")]
    imported = imported_distributions("tests", "benchmarks")
    assert imported - required_distributions(*files) - {"tests"} == set()


def test_package_can_be_built_from_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11,<3.14"
    dynamic = project["tool"]["setuptools"]["dynamic"]
    for entry in (dynamic["dependencies"], *dynamic["optional-dependencies"].values()):
        assert (ROOT / entry["file"]).is_file()
