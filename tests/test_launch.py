"""The launchers start the right commands, say what they would start, and leave nothing running."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
LOCAL, TPU, SLURM = "launch/local.sh", "launch/tpu_vm.sh", "launch/slurm.sbatch"
OFFLINE, STOPPED = "launch/offline.sh", "launch/until_stopped.sh"
TPU_VARIABLES = {"NAME": "faces", "ZONE": "us-east5-b", "TYPE": "v6e-16"}
FLAGS = ["--config=configs/synthetic.py", "--workdir=runs/a b"]


def launch(script, *arguments, **variables):
    """Runs a launcher to its end, without the variables of this shell that it reads."""
    read = (
        "CUDA_VISIBLE_DEVICES", "GLIBC_TUNABLES", "JAX_PLATFORMS", "XLA_FLAGS", "LIBTPU_INIT_ARGS",
        "XLA_PYTHON_CLIENT_MEM_FRACTION",
    )  # fmt: skip
    kept = {key: value for key, value in os.environ.items() if key not in read}
    return subprocess.run(
        ["bash", script, *arguments],
        cwd=ROOT,
        env={"JAX_PLATFORMS": "cpu", **kept, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def words(line):
    """Returns a printed line as a shell reads it."""
    text = subprocess.run(
        ["bash", "-c", f"set -- {line}\nprintf '%s\\0' \"$@\""], capture_output=True, text=True
    ).stdout
    return text.split("\0")[:-1]


def commands(result):
    """Returns the printed commands without comments, each as a list of words."""
    assert result.returncode == 0, result.stderr
    return [words(line) for line in result.stdout.splitlines() if not line.startswith("#")]


def program(folder, name, text):
    """Puts an executable script into `folder`; returns a PATH on which it comes first."""
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    "script", ["launch/setup.sh", LOCAL, TPU, SLURM, OFFLINE, STOPPED, ".ci/run"]
)
def test_shell_warns_of_nothing(script):
    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}")
    assert shellcheck, "shellcheck is missing; install requirements-dev.txt"
    result = subprocess.run([shellcheck, script], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout + result.stderr == ""


@pytest.mark.parametrize(
    ("script", "named"),
    [
        (LOCAL, ["--processes", "--port", "--module", "--python", "--dry_run"]),
        (TPU, ["create", "install", "run", "resume", "status", "delete", "--dry_run", "SPOT"]),
        (SLURM, ["sbatch", "DRY_RUN"]),
        (OFFLINE, ["pack", "install", "--python", "--platform", "--with", "--base", "--data"]),
    ],
)
def test_help_names_everything(script, named):
    result = launch(script, "--help")
    assert result.returncode == 0
    assert [word for word in named if word not in result.stdout] == []
    assert "#" not in [line[:1] for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "reason"),
    [
        (LOCAL, ["--proceses", "2"], {}, "unknown option --proceses"),
        (LOCAL, ["--processes", "two"], {}, "--processes two is not a positive whole number"),
        (LOCAL, ["--processes=0"], {}, "--processes 0 is not a positive whole number"),
        (LOCAL, ["--port", "x"], {}, "--port x is not a port number"),
        (LOCAL, ["--port"], {}, "--port needs a value"),
        (SLURM, ["--nodes=2"], {"DRY_RUN": "1"}, "unknown option --nodes=2"),
        (SLURM, FLAGS, {}, "there is no Slurm job here"),
        (SLURM, FLAGS, {"SLURM_SUBMIT_DIR": "/"}, "/ is not the root of the repository"),
        (
            SLURM,
            FLAGS,
            {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "8"},
            "8 GPUs but 1 tasks on a node",
        ),
        (TPU, [], TPU_VARIABLES, "say what to do"),
        (TPU, ["destroy"], TPU_VARIABLES, "cannot destroy"),
        (TPU, ["create", "--spot"], TPU_VARIABLES, "create takes no --spot"),
        (TPU, ["run"], TPU_VARIABLES, "run needs the recipe and the workdir"),
        (TPU, ["run", "--cofig=a"], TPU_VARIABLES, "unknown option --cofig=a"),
        (TPU, ["--dry_run", "status"], {"NAME": "faces"}, "set NAME and ZONE"),
        (TPU, ["--dry_run", "create"], {"NAME": "f", "ZONE": "z"}, "set TYPE"),
        (
            TPU,
            ["--dry_run", "create"],
            {"NAME": "f", "ZONE": "z", "TYPE": "v9-8"},
            "no VERSION is known for TYPE=v9-8",
        ),
        (OFFLINE, ["pack"], {}, "name the archive to write"),
        (OFFLINE, ["pack", "README.md"], {}, "README.md is there already"),
        (OFFLINE, ["pack", "new.tar", "--python", "3.10"], {}, "--python 3.10 is not one of 3.11"),
        (
            OFFLINE,
            ["pack", "new.tar", "--platform", "win"],
            {},
            "--platform win is not of the kind",
        ),
        (OFFLINE, ["pack", "new.tar", "--base", "none.txt"], {}, "there is no file none.txt"),
        (OFFLINE, ["pack", "new.tar", "--wiht", "x"], {}, "unknown option --wiht"),
        (OFFLINE, ["install"], {}, "there is nothing packed in"),
        (OFFLINE, ["install", "x"], {}, "install takes no argument"),
        (OFFLINE, ["unpack"], {}, "unknown command unpack"),
    ],
)
def test_wrong_use_is_one_sentence(script, arguments, variables, reason):
    result = launch(script, *arguments, **variables)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and reason in result.stderr
    assert result.stdout == ""


# ---- one machine ---------------------------------------------------------------------------------


def test_local_dry_run_of_one_process():
    result = launch(LOCAL, "--dry_run", *FLAGS, "--", "--job", "eval it", XLA_FLAGS="--a --b")
    python = ".venv/bin/python"
    assert commands(result)[0][-7:] == [python, "-m", "hmtl_jax.main", *FLAGS, "--job", "eval it"]
    assert "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 " in result.stdout
    assert r"XLA_FLAGS=--a\ --b " in result.stdout


def test_local_dry_run_of_several_processes():
    result = launch(LOCAL, *FLAGS, "--processes=3", "--port", "4321", "--dry_run")
    ends = [command[-3:] for command in commands(result)]
    assert ends == [
        ["--coordinator=127.0.0.1:4321", "--num_processes=3", f"--process_id={rank}"]
        for rank in range(3)
    ]


def test_local_keeps_tunables_that_were_set():
    more = launch(LOCAL, "--dry_run", GLIBC_TUNABLES="glibc.malloc.check=1")
    assert "GLIBC_TUNABLES=glibc.malloc.check=1:glibc.malloc.hugetlb=1 " in more.stdout
    same = launch(LOCAL, "--dry_run", GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    assert "GLIBC_TUNABLES=glibc.malloc.hugetlb=0 " in same.stdout


def test_local_deals_out_the_gpus(tmp_path):
    path = program(tmp_path, "nvidia-smi", "#!/bin/sh\nprintf '0\\n1\\n2\\n3\\n'\n")

    def dealt(processes, **variables):
        result = launch(
            LOCAL,
            "--dry_run",
            f"--processes={processes}",
            PATH=path,
            JAX_PLATFORMS="cuda",
            **variables,
        )
        found = [word for command in commands(result) for word in command]
        return [word.split("=")[1] for word in found if word.startswith("CUDA_VISIBLE_DEVICES=")]

    assert dealt(2) == ["0,1", "2,3"]
    assert dealt(2, CUDA_VISIBLE_DEVICES="5,7") == ["5", "7"]
    uneven = launch(LOCAL, "--dry_run", "--processes=3", PATH=path, JAX_PLATFORMS="cuda")
    assert uneven.returncode == 2 and "3 processes cannot share 4 GPUs evenly" in uneven.stderr
    cpu = launch(LOCAL, "--dry_run", "--processes=3", PATH=path, JAX_PLATFORMS="cpu")
    assert "CUDA_VISIBLE_DEVICES" not in cpu.stdout


def flags(line, variable):
    """The flags in a variable of a printed command."""
    found = [word for word in words(line) if word.startswith(f"{variable}=")]
    return found[0].partition("=")[2].split() if found else []


def test_local_sets_what_pays_on_several_gpus(tmp_path):
    path = program(tmp_path, "nvidia-smi", "#!/bin/sh\nprintf '0\\n1\\n'\n")
    chosen = {"XLA_FLAGS": "--xla_gpu_all_reduce_combine_threshold_bytes=7 --mine"}
    line = launch(LOCAL, "--dry_run", PATH=path, JAX_PLATFORMS="cuda", **chosen).stdout
    found = flags(line, "XLA_FLAGS")
    assert found[:2] == chosen["XLA_FLAGS"].split()  # what is set stays as it is
    assert "--xla_gpu_enable_latency_hiding_scheduler=true" in found
    assert len([flag for flag in found if "all_reduce_combine" in flag]) == 1
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 " in line and "LIBTPU" not in line
    one = launch(LOCAL, "--dry_run", PATH=path, JAX_PLATFORMS="", CUDA_VISIBLE_DEVICES="1").stdout
    assert flags(one, "XLA_FLAGS") == [] and "MEM_FRACTION=0.9 " in one
    kept = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.4"}
    assert (
        "MEM_FRACTION=0.4 "
        in launch(LOCAL, "--dry_run", PATH=path, JAX_PLATFORMS="", **kept).stdout
    )
    none = launch(LOCAL, "--dry_run", PATH=path, JAX_PLATFORMS="cpu").stdout
    assert "XLA_FLAGS" not in none and "MEM_FRACTION" not in none


def test_local_sets_what_pays_on_a_tpu(tmp_path):
    (tmp_path / "accel0").touch()
    chosen = {"LIBTPU_INIT_ARGS": "--xla_enable_async_all_gather=false"}
    there = {"JAX_PLATFORMS": "", "TPU_DEVICES": str(tmp_path)}
    found = flags(launch(LOCAL, "--dry_run", **there, **chosen).stdout, "LIBTPU_INIT_ARGS")
    assert found[0] == chosen["LIBTPU_INIT_ARGS"] and len(found) == 5
    assert "LIBTPU" not in launch(LOCAL, "--dry_run").stdout


def test_the_flags_are_known_to_the_compiler():
    """XLA ends the process at a flag that it doesn't know; those of a TPU it knows on one alone."""
    text = (ROOT / LOCAL).read_text()
    known = re.findall(r"(--xla_gpu\S+)", text)
    assert len(known) == 4
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(known)}
    code = "import jax; print(jax.jit(lambda x: x + 1)(1))"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.stdout.strip() == "2", ended.stderr


STUB = """
import json, os, pathlib, signal, sys, time
rank = sys.argv[-1][-1]
def save(*_):
    os.write(1, f"saved {rank}\\n".encode())  # whole, whatever the buffering
    sys.exit()
signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ.get("STUCK") == rank else save)
os.write(1, (json.dumps(sys.argv[1:]) + "\\n").encode())
started = pathlib.Path(__file__).parent / "started"
(started / rank).touch()
while len(list(started.iterdir())) < 2:
    time.sleep(0.01)
if os.environ.get("FAIL") == rank:
    os.write(1, b"bad luck\\n")
    sys.exit(3)
if "FAIL" in os.environ or "WAIT" in os.environ:
    time.sleep(60)
"""


@pytest.fixture
def local(tmp_path):
    """Returns a function that starts launch/local.sh over a small program of two processes."""
    (tmp_path / "stub.py").write_text(STUB)
    (tmp_path / "started").mkdir()
    arguments = ["--python", sys.executable, "--module=stub", "--processes", "2"]

    def start(**variables):
        return subprocess.Popen(
            ["bash", LOCAL, *arguments, *FLAGS],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tmp_path), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_local_runs_several_processes_that_know_each_other(local):
    process = local()
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    second, first = sorted(output.splitlines(), key=lambda line: not line.startswith("[1] "))
    arguments = [json.loads(first), json.loads(second.removeprefix("[1] "))]
    assert [line[-1] for line in arguments] == ["--process_id=0", "--process_id=1"]
    assert arguments[0][:-1] == arguments[1][:-1]
    assert arguments[0][:2] == FLAGS
    assert arguments[0][2].startswith("--coordinator=127.0.0.1:")


@pytest.mark.parametrize("failing", ["0", "1"])
def test_local_stops_all_when_one_fails(local, failing):
    process = local(FAIL=failing)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 3
    assert f"process {failing} ended with status 3" in errors
    assert "bad luck" in output
    assert f"saved {1 - int(failing)}" in output


@pytest.mark.slow
def test_local_kills_what_does_not_stop(local):
    process = local(FAIL="1", STUCK="0")
    process.communicate(timeout=30)  # well under the minute that the stuck process would take
    assert process.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_the_signal_on_and_waits(local, number):
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("the shell that started the tests lets nothing of theirs be interrupted")
    process = local(WAIT="1")
    assert process.stdout.readline() and process.stdout.readline()  # both have started
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "saved 0" in output and "[1] saved 1" in output


# ---- Slurm ---------------------------------------------------------------------------------------


def test_slurm_dry_run():
    result = launch(SLURM, *FLAGS, DRY_RUN="1", SLURM_CPUS_PER_TASK="12")
    step, inside = commands(result)
    assert step == ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=12", LOCAL, *FLAGS]
    assert inside[-4:] == ["-m", "hmtl_jax.main", *FLAGS]


@pytest.fixture
def slurm(tmp_path):
    """Returns a function that starts launch/slurm.sbatch on a cluster that is played by scripts."""
    spooled = shutil.copy(ROOT / SLURM, tmp_path)
    program(tmp_path, "scontrol", f'#!/bin/sh\necho "$@" >>{tmp_path}/scontrol.log\n')
    text = f"""#!/bin/bash
printf '%s\\n' "$@" >{tmp_path}/srun.log
trap 'sleep 0.5; echo saved; exit 0' TERM
echo started
for ((i = 0; i < 10 * SECONDS_TO_RUN; i++)); do sleep 0.1; done
exit "$CODE"
"""
    cluster = {
        "PATH": program(tmp_path, "srun", text),
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_NTASKS_PER_NODE": "4",
    }

    def start(code=0, seconds=0):
        return subprocess.Popen(
            ["bash", spooled, *FLAGS],
            cwd=tmp_path,
            env={**os.environ, **cluster, "CODE": str(code), "SECONDS_TO_RUN": str(seconds)},
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.parametrize("code", [0, 5])
def test_slurm_job_ends_as_its_step_does(slurm, tmp_path, code):
    job = slurm(code=code)
    job.communicate(timeout=30)
    assert job.returncode == code
    assert (tmp_path / "srun.log").read_text().splitlines()[-3:] == [LOCAL, *FLAGS]
    assert not (tmp_path / "scontrol.log").exists()


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurm_job_saves_and_only_the_time_limit_requeues(slurm, tmp_path, number, requeued):
    job = slurm(seconds=60)
    assert job.stdout.readline() == "started\n"
    job.send_signal(number)
    output, _ = job.communicate(timeout=30)
    assert (job.returncode, output) == (0, "saved\n")
    log = tmp_path / "scontrol.log"
    assert (log.read_text() if log.exists() else "") == ("requeue 7\n" if requeued else "")


# ---- Cloud TPU -----------------------------------------------------------------------------------


def test_tpu_dry_run_of_every_action():
    def printed(action, *arguments, **variables):
        return commands(
            launch(TPU, action, "--dry_run", *arguments, **{**TPU_VARIABLES, **variables})
        )

    start = ["gcloud", "compute", "tpus", "tpu-vm"]
    zone = "--zone=us-east5-b"
    kind = ["--accelerator-type=v6e-16", "--version=v2-alpha-tpuv6e"]
    assert printed("create") == [[*start, "create", "faces", *kind, zone]]
    spot = printed("create", SPOT="1", PROJECT="p", VERSION="own")
    assert spot == [
        [*start, "create", "faces", kind[0], "--version=own", "--spot", zone, "--project=p"]
    ]
    assert printed("delete") == [[*start, "delete", "faces", zone]]

    archive, copy, _, install = printed("install")
    assert archive[:2] == ["git", "archive"] and archive[-1] == "HEAD"
    assert copy[4:] == [
        "scp",
        "hmtl_jax-faces.tar.gz",
        "faces:hmtl_jax.tar.gz",
        "--worker=all",
        zone,
    ]
    assert install[4:7] == ["ssh", "faces", "--worker=all"]
    assert "pip install -qq 'jax[tpu]>=" in install[7]

    (run,) = printed("run", *FLAGS)
    assert run[4:7] == ["ssh", "faces", "--worker=all"]
    assert "launch/local.sh --config=configs/synthetic.py --workdir=runs/a\\ b " in run[7]
    verbs = [line[4] if line[0] == "gcloud" else line[0] for line in printed("resume", *FLAGS)]
    assert verbs == ["describe", "create", "git", "scp", "rm", "ssh", "ssh"]
    assert [line[4] for line in printed("status")] == ["describe", "ssh"]


@pytest.fixture
def tpu(tmp_path):
    """Returns a function that runs launch/tpu_vm.sh on a TPU whose one host is a folder."""
    host = tmp_path / "host"
    (host / "hmtl_jax" / "launch").mkdir(parents=True)
    stand_in = '#!/bin/sh\nprintf "%s\\n" "$@"\nexec sleep 60\n'
    program(host / "hmtl_jax" / "launch", "local.sh", stand_in)
    text = f"""#!/bin/bash
echo "$4" >>{tmp_path}/verbs
[[ $4 != describe ]] || cat {tmp_path}/state
cd {host}
for word; do case $word in --command=*) exec bash -c "${{word#--command=}}" ;; esac; done
"""
    path = program(tmp_path, "gcloud", text)
    program(tmp_path, "git", "#!/bin/sh\n")

    def run(action, state):
        (tmp_path / "state").write_text(state)
        (tmp_path / "verbs").write_text("")
        result = launch(TPU, action, *FLAGS, **TPU_VARIABLES, PATH=path)
        return result, (tmp_path / "verbs").read_text().split()

    yield run
    number = host / "hmtl_jax" / "run.pid"
    if number.exists():
        os.kill(int(number.read_text()), signal.SIGKILL)


def test_tpu_run_goes_on_after_the_shell_and_does_not_start_twice(tpu, tmp_path):
    result, verbs = tpu("run", "READY\n")
    assert (result.returncode, verbs) == (0, ["ssh"])
    log = tmp_path / "host" / "hmtl_jax" / "run.log"
    deadline = time.monotonic() + 10
    while log.read_text().splitlines() != FLAGS:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again, _ = tpu("run", "READY\n")
    assert again.returncode == 1 and "a run is going on here already" in again.stdout


@pytest.mark.parametrize(
    ("state", "verbs"),
    [
        ("READY\n", ["describe", "ssh"]),
        ("CREATING\n", ["describe"]),
    ],
)
def test_tpu_resume_does_what_the_state_asks_for(tpu, state, verbs):
    result, called = tpu("resume", state)
    assert called == verbs
    assert (result.returncode == 0) == (state == "READY\n")


@pytest.mark.parametrize(("state", "first"), [("", []), ("PREEMPTED\n", ["delete"])])
def test_tpu_resume_makes_a_lost_one_again(tpu, tmp_path, state, first):
    code = "#!/bin/sh\nexit 1\n"  # stops after the copy: there is nothing to install in this test
    program(tmp_path, "rm", code)
    result, called = tpu("resume", state)
    assert called == ["describe", *first, "create", "scp"]
    assert result.returncode == 1


# ---- a machine without a network -----------------------------------------------------------------


def wheel(folder, name, version, text=""):
    """A wheel of one module, as pip reads it."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{text}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as out:
        for file, content in {**files, f"{info}/RECORD": rows}.items():
            out.writestr(file, content)


@pytest.fixture
def project(tmp_path):
    """A small repository with our launchers, whose packages lie in a folder beside it."""
    place, shelf = tmp_path / "project", tmp_path / "shelf"
    (place / "hmtl_jax").mkdir(parents=True)
    shelf.mkdir()
    for name in ("setup.sh", "offline.sh"):
        (place / "launch").mkdir(exist_ok=True)
        shutil.copy(ROOT / "launch" / name, place / "launch" / name)
    (place / "hmtl_jax" / "__init__.py").touch()
    (place / "hmtl_jax" / "train.py").write_text("import first, second\n")
    (place / "requirements.txt").write_text("first>=1,<3\n")
    (place / "requirements-more.txt").write_text("# --no-deps\nthird>=1,<2\n")
    wheel(shelf, "first", "1.5", "Requires-Dist: second\n")
    wheel(shelf, "first", "2.0", "Requires-Dist: second\n")
    wheel(shelf, "second", "1.0")
    wheel(shelf, "third", "1.0", "Requires-Dist: nowhere\n")
    (place / "data" / "faces").mkdir(parents=True)
    (place / "data" / "faces" / "one").write_text("1")
    subprocess.run(["git", "init", "-q"], cwd=place, check=True)
    subprocess.run(
        ["git", "add", "hmtl_jax", "launch", *place.glob("*.txt")], cwd=place, check=True
    )

    def offline(*arguments, folder=place, **variables):
        environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shelf)}
        return subprocess.run(
            ["bash", str(folder / "launch" / "offline.sh"), *arguments], cwd=tmp_path,
            env={**environment, "PYTHON": sys.executable, **variables},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return offline, tmp_path


HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
MACHINE = f"manylinux_2_28_{os.uname().machine}"


def unpacked(folder, name):
    place = folder / "there"
    place.mkdir(exist_ok=True)
    subprocess.run(["tar", "-xf", str(folder / name)], cwd=place, check=True)
    return place / "hmtl_jax"


def test_what_is_packed_is_installed_without_a_network(project):
    offline, folder = project
    packed = offline(
        "pack", "all.tar", "--python", HERE, "--platform", MACHINE, "--data",
        "project/data/faces", "--requirements", "requirements-more.txt", "--with", "first<2",
    )  # fmt: skip
    assert packed.returncode == 0, packed.stderr
    assert f"3 wheels for Python {HERE} on {MACHINE}" in packed.stdout
    there = unpacked(folder, "all.tar")
    assert (there / "data" / "faces" / "one").read_text() == "1"
    installed = offline("install", folder=there, PIP_FIND_LINKS=str(folder / "nothing"))
    assert installed.returncode == 0, installed.stderr
    code = "import first, second, third; print(first.version)"
    found = subprocess.run(
        [there / ".venv" / "bin" / "python", "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout == "1.5\n"


def test_what_is_there_already_is_left_out(project):
    offline, folder = project
    (folder / "base.txt").write_text(
        "Package    Version\n---------- -------\nFirst      1.5\nnumpy      1.0\n"
    )
    packed = offline(
        "pack", "few.tar", "--python", HERE, "--platform", MACHINE, "--base", "base.txt"
    )
    assert packed.returncode == 0, packed.stderr
    wheels = unpacked(folder, "few.tar") / ".offline" / "wheels"
    assert [file.name for file in wheels.iterdir()] == ["second-1.0-py3-none-any.whl"]
    (folder / "base.txt").write_text("first==0.5\n")
    refused = offline(
        "pack", "no.tar", "--python", HERE, "--platform", MACHINE, "--base", "base.txt"
    )
    assert (
        refused.returncode == 1 and "base.txt that does not fit can be taken out" in refused.stderr
    )
    assert not (folder / "no.tar").exists()


def test_an_archive_for_another_machine_or_python_is_refused(project):
    offline, folder = project
    other = "3.11" if HERE != "3.11" else "3.12"
    offline("pack", "a.tar", "--python", other, "--platform", MACHINE)
    there = unpacked(folder, "a.tar")
    refused = offline("install", folder=there)
    assert refused.returncode == 3 and refused.stderr.count("\n") == 1
    assert f"packed for Python {other} and {sys.executable} is {HERE}; pack again" in refused.stderr
    told = there / ".offline" / "packed"
    told.write_text(told.read_text().replace(MACHINE, "manylinux_2_28_riscv64"))
    refused = offline("install", folder=there)
    assert refused.returncode == 3 and "packed for riscv64 and this is" in refused.stderr
    told.write_text(
        told.read_text().replace("manylinux_2_28_riscv64", f"manylinux_9_1_{os.uname().machine}")
    )
    refused = offline("install", folder=there)
    assert refused.returncode == 3 and "packed for glibc 9.1 or newer" in refused.stderr
    assert not (there / ".venv").exists()


# ---- Kubernetes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "wanted"), [("exit 0", 0), ("exit 3", 3)])
def test_a_command_ends_as_it_ends(code, wanted):
    """However soon it does: often it is over before it is waited for."""
    for _ in range(20):
        ended = subprocess.run(["bash", STOPPED, "bash", "-c", code], cwd=ROOT)
        assert ended.returncode == wanted


def test_a_command_that_was_told_to_stop_is_not_done(tmp_path):
    code = f"trap 'touch {tmp_path}/saved; exit 0' TERM; touch {tmp_path}/on; sleep 30 & wait"
    process = subprocess.Popen(["bash", STOPPED, "bash", "-c", code], cwd=ROOT)
    for _ in range(500):
        if (tmp_path / "on").exists():
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143 and (tmp_path / "saved").exists()


def test_a_command_told_twice_is_waited_for(tmp_path):
    code = (
        f"trap 'sleep 2; touch {tmp_path}/saved; exit 0' TERM; touch {tmp_path}/on; sleep 30 & wait"
    )
    process = subprocess.Popen(["bash", STOPPED, "bash", "-c", code], cwd=ROOT)
    for _ in range(500):
        if (tmp_path / "on").exists():
            break
        time.sleep(0.02)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    assert process.wait(timeout=30) == 143 and (tmp_path / "saved").exists()


def test_the_jobsets_fit_the_schemas_of_kubernetes():
    """Each of their jobs by the schema of a Job; JobSet's own has few fields, which stand here."""
    text = (ROOT / "launch" / "gke_jobset.yaml").read_text()
    jobsets = list(yaml.safe_load_all(text))
    assert [one["metadata"]["labels"]["hmtl_jax"] for one in jobsets] == ["gpu", "tpu"]
    for one in jobsets:
        assert (one["apiVersion"], one["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
        assert set(one["spec"]) == {"failurePolicy", "network", "replicatedJobs"}
        for replicated in one["spec"]["replicatedJobs"]:
            assert set(replicated) == {"name", "replicas", "template"}
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "one"}}
            job |= replicated["template"]
            kubernetes_validate.validate(job, "1.34", strict=True)
            with pytest.raises(kubernetes_validate.ValidationError):
                broken = {**job, "spec": {**job["spec"], "parallelisms": 2}}
                kubernetes_validate.validate(broken, "1.34", strict=True)
            (container,) = job["spec"]["template"]["spec"]["containers"]
            for program in container["command"]:
                assert os.access(ROOT / program, os.X_OK)
            dry = launch(LOCAL, "--dry_run", *container["args"])
            assert "-m hmtl_jax.main --config=configs/affectnet_mae_lbp.py" in dry.stdout
            hosts = f"--num_processes={job['spec']['parallelism']}"
            assert job["spec"]["completions"] == job["spec"]["parallelism"]
            assert (hosts in container["args"]) == (one["metadata"]["labels"]["hmtl_jax"] == "gpu")
