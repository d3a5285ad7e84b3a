"""The command line: a mistake is one sentence and status 1, without a traceback."""

import ast
import os
import subprocess
import sys

import pytest
from absl import flags

from configs import linear_probe
from hmtl_jax import cluster, commandline, compiled, main, rules
from hmtl_jax.errors import UserError
from hmtl_jax.tasks.data import given_weights
from tests import runs

RECIPE = "--config=tests/run_recipe.py"


@pytest.fixture
def refuses(monkeypatch):
    """Parses a command line in this process; returns the sentence it ends with."""
    monkeypatch.chdir(runs.ROOT)

    def parse(*arguments):
        argv = ["main.py", *arguments]
        monkeypatch.setattr(sys, "argv", argv)  # the flag of the recipe looks there
        try:
            with pytest.raises(SystemExit) as ended:
                commandline.parse(argv)
        finally:
            flags.FLAGS.unparse_flags()
        return ended.value.code

    return parse


@pytest.mark.parametrize(
    "key, said",
    [
        ("optim.lrr", "has no key 'optim.lrr'. Did you mean 'optim.lr'?"),
        ("lr", "has no key 'lr'. Did you mean 'optim.lr'?"),
        ("batchsize", "has no key 'batchsize'. Did you mean 'batch_size'?"),
        ("tasks.expresion.weight", "Did you mean 'tasks.expression.weight'?"),
        (
            "data.zzz",
            "Known in data: cache, data_dir, decode_size, image_size, labelled, name, sampling",
        ),
        ("unknown_key", "has no key 'unknown_key'. Known: augment, batch_size, checkpoint, data,"),
    ],
)
def test_an_unknown_key_suggests_the_nearest_or_lists_the_known(refuses, key, said):
    sentence = refuses(RECIPE, "--workdir=x", f"--config.{key}=1")
    assert sentence.startswith("error: The recipe tests/run_recipe.py has no key")
    assert said in sentence


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--workdir=x"], "--config must have a value"),
        (["--config=configs/nope.py", "--workdir=x"], "There is no recipe configs/nope.py"),
        (["--config", "configs/nope.py:cpu", "--workdir=x"], "There is no recipe configs/nope.py"),
        (["--config=tests/runs.py", "--workdir=x"], "tests/runs.py is no recipe: it lacks"),
        ([f"{RECIPE}:cpu", "--workdir=x"], "takes no argument; leave out ':cpu'"),
        (["--config=configs/ferplus_supervised.py:gpu", "--workdir=x"], "'gpu' is unknown"),
        ([RECIPE, "--workdir=x", "--config.optim.lr=abc"], "could not convert string to float"),
        ([RECIPE, "--workdir=x", "--config.batch_size=1.5"], "--config.batch_size=1.5"),
        ([RECIPE, "--workdir=x", "--nonsense=1"], "Unknown command line flag 'nonsense'"),
        ([RECIPE, "--workdir=x", "--process_id=one"], "--process_id=one"),
    ],
)
def test_wrong_flags_are_one_sentence(refuses, arguments, said):
    sentence = refuses(*arguments)
    assert sentence.startswith("error: ")
    assert said in sentence
    assert "Traceback" not in sentence and "\n" not in sentence


def test_only_a_probe_has_a_workdir_of_its_own(tmp_path):
    config = linear_probe.get_config()
    config.init_from = str(tmp_path)
    assert main.workdir_beside(config) == f"{tmp_path}/probe"
    # Not in the checkpoint's own folder, which goes when it is pruned.
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    config.init_from = str(tmp_path / "checkpoints" / "7")
    assert main.workdir_beside(config) == f"{tmp_path}/probe"
    for other in (runs.config("data"), linear_probe.get_config()):
        with pytest.raises(UserError, match="--workdir is missing"):
            main.workdir_beside(other)


def test_ctrl_c_is_one_sentence(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.chdir(runs.ROOT)
    monkeypatch.setattr(cluster, "join", interrupted)
    monkeypatch.setattr(compiled, "keep", lambda folder: None)
    argv = ["main.py", RECIPE, "--workdir=x"]
    monkeypatch.setattr(sys, "argv", argv)
    try:
        commandline.parse(argv)
        with pytest.raises(SystemExit) as ended:
            main.main(argv[:1])
    finally:
        flags.FLAGS.unparse_flags()
    assert ended.value.code == 130
    said = capsys.readouterr().err
    assert said == "interrupted; the same command goes on from the last checkpoint\n"


def test_known_keys_of_any_kind_pass(monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    commandline.checked(
        ["main.py", RECIPE, "--config.optim.lr=1", "--config.data.tolerate_corrupt",
         "--noconfig.data.tolerate_corrupt", "--config.augment.crop_scale=(0.5, 1.0)",
         "--config.tasks.expression.weight=2"]
    )  # fmt: skip
    with pytest.raises(UserError, match="no key 'nodata'"):
        commandline.checked(["main.py", RECIPE, "--config.nodata=1"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("lbp,rgb", ("lbp", "rgb")),
        ("lbp", ("lbp",)),
        ("('lbp',)", ("lbp",)),
        ("(lbp, rgb)", ("lbp", "rgb")),
        ("['lbp']", ("lbp",)),
        ("0.5,1", (0.5, 1)),
        ("(2, 9)", (2, 9)),
        ("3", (3,)),
        ("", ()),
        ("()", ()),
    ],
)
def test_a_list_is_written_with_commas_or_as_in_python(text, found):
    assert ast.literal_eval(commandline.as_tuple(text)) == found


def test_lists_on_the_command_line_reach_the_recipe(monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    argv = [
        "main.py", RECIPE, "--workdir=x", "--config.pretexts.mae.targets", "lbp,rgb",
        "--config.augment.crop_scale=0.5,1",
        "--config.tasks.expression.class_weights=1,2,3,4,5,6,7,8",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", argv)
    try:
        commandline.parse(argv)
        config = main.FLAGS.config
    finally:
        flags.FLAGS.unparse_flags()
    assert config.pretexts.mae.targets == ("lbp", "rgb")
    assert config.augment.crop_scale == (0.5, 1)
    rules.check(config)
    assert given_weights("key", config.tasks.expression.class_weights, 8) == tuple(range(1, 9))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("config.optim.learning_rate = 1.0", "'optim.learning_rate', a key that nothing reads"),
        ("config.optim.lr = 'fast'", "fails in line 4: "),
        ("config.optimizer.lr = 1.0", "fails in line 4: "),
        ("config.tasks.face = recipe.task('pose', label='x')", "has no setting 'label'"),
    ],
)
def test_a_mistake_in_a_recipe_file_is_one_sentence(tmp_path, line, said):
    file = tmp_path / "mine.py"
    file.write_text(
        "from hmtl_jax import recipe\ndef get_config():\n"
        f"    config = recipe.defaults()\n    {line}\n    return config\n"
    )
    with pytest.raises(UserError) as caught:
        commandline.checked(["main.py", f"--config={file}"])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def command(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "hmtl_jax.main", *arguments],
        cwd=runs.ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--config.unknown_key=1"], "error: The recipe tests/run_recipe.py has no key"),
        (["garbage"], "error: 'garbage' is not a flag; write --config.KEY=VALUE."),
        (["--num_processes=2"], "--num_processes and --process_id go together"),
        (["--config.data.name=ferplus", "--config.data.data_dir=/nowhere"], "error: data_dir /now"),
    ],
)
def test_the_program_says_one_sentence_and_ends_with_status_1(tmp_path, arguments, said):
    ended = command(tmp_path, RECIPE, f"--workdir={tmp_path}/run", *arguments)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "run" / "config.json").exists()


ANEW = """
import os, sys
from hmtl_jax import commandline
commandline.with_huge_pages()
print(os.environ["GLIBC_TUNABLES"], sys.flags.dont_write_bytecode, sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a tunable of glibc")
@pytest.mark.parametrize(
    "set_to, then",
    [
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=0", "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_a_training_starts_anew_with_huge_pages_unless_something_was_said_of_them(set_to, then):
    told = subprocess.run(
        [sys.executable, "-B", "-c", ANEW, "a b", "--c"],
        env=os.environ | {"GLIBC_TUNABLES": set_to}, cwd=runs.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert told.stdout == f"{then} 1 ['a b', '--c']\n", told.stderr
