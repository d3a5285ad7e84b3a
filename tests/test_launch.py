"""The launchers start the right commands, say what they would start, and leave nothing running."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LOCAL, TPU, SLURM = "launch/local.sh", "launch/tpu_vm.sh", "launch/slurm.sbatch"
TPU_VARIABLES = {"NAME": "faces", "ZONE": "us-east5-b", "TYPE": "v6e-16"}
FLAGS = ["--config=configs/synthetic.py", "--workdir=runs/a b"]


def launch(script, *arguments, **variables):
    """Runs a launcher to its end, without the variables of this shell that it reads."""
    read = ("CUDA_VISIBLE_DEVICES", "GLIBC_TUNABLES", "JAX_PLATFORMS", "XLA_FLAGS")
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


@pytest.mark.parametrize("script", ["launch/setup.sh", LOCAL, TPU, SLURM, ".ci/run"])
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
