"""A folder belongs to one recipe, and what cannot hold a run is refused in one sentence."""

import collections
import json
import re
import shutil
import subprocess

import pytest

from hmtl_jax import recipe, workdir
from hmtl_jax.errors import UserError


def config(lr=0.1, **keys):
    found = recipe.defaults()
    found.optim.lr = lr
    found.tasks.expression = recipe.task("classification", label="expression", **keys)
    return found


IDENTITY = {
    "name": "tiny", "version": "1.0.0", "reader": "tiny", "options": {"rule": "majority"},
    "digest": "0123456789abcdef", "counts": {"train": {"examples": 8}},
}  # fmt: skip


def claim(folder, config, identity=IDENTITY):
    workdir.check_writable(folder)
    workdir.claim(folder, config, {}, identity)


def test_a_claimed_folder_is_that_recipe_alone(tmp_path):
    workdir.check(tmp_path / "run", config())
    claim(tmp_path / "run", config())
    workdir.check(tmp_path / "run", config())
    with pytest.raises(UserError) as caught:
        workdir.check(tmp_path / "run", config(lr=0.2, label_smoothing=0.5))
    text = str(caught.value)
    assert str(tmp_path / "run") in text
    assert "optim.lr: 0.1 → 0.2" in text
    assert "tasks.expression.label_smoothing: 0.0 → 0.5" in text
    assert text.count("→") == 2


def test_tuples_are_equal_to_what_json_makes_of_them(tmp_path):
    found = config(class_weights=(1.0, 2.0))
    found.augment.crop_scale = (0.5, 1.0)
    claim(tmp_path, found)
    workdir.check(tmp_path, found)


@pytest.mark.parametrize(
    "key, value",
    [
        ("job", "probe"),
        ("log_every", 3),
        ("nonfinite", "skip"),
        ("data.data_dir", "elsewhere"),
        ("data.workers", 2),
        ("data.threads", 1),
        ("data.tolerate_corrupt", True),
        ("mesh.fsdp", 4),
        ("checkpoint.keep", 7),
        ("eval_batch_size", 8),
    ],
)
def test_keys_that_change_no_result_are_free(tmp_path, key, value):
    claim(tmp_path, config())
    other = config()
    other.update_from_flattened_dict({key: value})
    workdir.check(tmp_path, other)


def test_checking_leaves_nothing(tmp_path):
    workdir.check(tmp_path, config())
    workdir.check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", '{"job": "tr', "[]"])
def test_a_damaged_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json .*put back a copy"):
        workdir.check(tmp_path, config())


def test_a_run_of_an_earlier_version_is_refused(tmp_path):
    claim(tmp_path, config())
    (tmp_path / "tasks.json").unlink()
    with pytest.raises(UserError, match=r"has no tasks\.json: an earlier version .* made it"):
        workdir.check(tmp_path, config())


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    workdir.check_data(tmp_path, IDENTITY)  # nobody's yet
    claim(tmp_path, config())
    workdir.check_data(tmp_path, IDENTITY)
    other = IDENTITY | {"version": "1.1.0", "digest": "fedcba9876543210"}
    said = (
        r"was trained on tiny 1\.0\.0 \(rule=majority; digest 01234567\), but data\.data_dir now "
        r"holds tiny 1\.1\.0 \(rule=majority; digest fedcba98\)"
    )
    with pytest.raises(UserError, match=said):
        workdir.check_data(tmp_path, other)


@pytest.mark.parametrize("place", ["/proc/run", "FILE/run"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "file").touch()
    folder = place.replace("FILE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written \(.+\); choose another --workdir"):
        workdir.check_writable(workdir.pathlib.Path(folder))


def test_a_backslash_in_the_path_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="has a backslash in its path"):
        workdir.check_writable(tmp_path / "a\\b")
    assert list(tmp_path.iterdir()) == []


def test_a_claim_is_whole_or_not_at_all(tmp_path, monkeypatch):
    claim(tmp_path, config())
    before = (tmp_path / "config.json").read_text()

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(workdir.files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        claim(tmp_path, config(lr=0.3))
    assert (tmp_path / "config.json").read_text() == before


def test_versions_name_what_the_numbers_hang_on(tmp_path):
    claim(tmp_path, config())
    found = json.loads((tmp_path / "versions.json").read_text())
    assert {"hmtl_jax", "jax", "jaxlib", "flax", "optax", "grain", "numpy", "device"} <= set(found)
    assert re.fullmatch(r"([0-9a-f]{40}\+?)?", found["commit"])


def test_the_commit_is_that_of_the_code_and_not_of_a_repository_around_it(tmp_path):
    def git(*arguments):
        who = ("-c", "user.name=n", "-c", "user.email=e@example.com")
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    assert workdir.commit_of(tmp_path) == ""
    git("init")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    (tmp_path / ".venv").mkdir()
    git("add", "code")
    git("commit", "-m", "one")
    assert re.fullmatch("[0-9a-f]{40}", workdir.commit_of(tmp_path / "code"))
    assert workdir.commit_of(tmp_path / ".venv") == ""
    (tmp_path / "code" / "a.py").write_text("2")
    assert workdir.commit_of(tmp_path / "code").endswith("+")


def disk(monkeypatch, free):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, free))


def test_space_is_needed_for_the_kept_the_best_and_the_one_in_the_making(tmp_path, monkeypatch):
    disk(monkeypatch, 4 * 10**9)
    workdir.check_space(tmp_path, 10**9, keep=2)
    disk(monkeypatch, 4 * 10**9 - 1)
    with pytest.raises(UserError, match="4 GB free, but 4 checkpoints of 1 GB need 4 GB"):
        workdir.check_space(tmp_path, 10**9, keep=2)


def test_checkpoints_that_stand_need_no_space_again(tmp_path, monkeypatch):
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    (tmp_path / "checkpoints" / "6" / "data").write_bytes(bytes(1000))
    disk(monkeypatch, 3000)
    workdir.check_space(tmp_path, 1000, keep=2)
    disk(monkeypatch, 2999)
    with pytest.raises(UserError, match=r"lower checkpoint\.keep"):
        workdir.check_space(tmp_path, 1000, keep=2)
