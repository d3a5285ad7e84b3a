"""The card of a model (Mitchell 2019): what it is, what it was made of, how good, and for whom.

Written from what lies in the run; what nobody measured is said to be unknown.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from hmtl_jax import results, trained, workdir
from hmtl_jax.metrics import names

FEW = 50  # test examples of a class, below which its figure says little


def text(path: pathlib.Path) -> str:
    """The card of the run in a workdir, as Markdown; UserError for a path that is no run."""
    run = results.opened(path)
    recipe = trained.recipe_of(run.folder)
    tasks = trained.tasks_from_json(workdir.read(run.folder, workdir.TASKS))
    versions = workdir.read(run.folder, workdir.VERSIONS)
    lines = [f"# {run.name}", ""]
    lines += [
        f"A `{recipe.model.encoder}` on faces of {recipe.data.image_size} × "
        f"{recipe.data.image_size} pixels, trained with hmtl_jax (commit "
        f"{versions.get('commit', '')[:12] or 'unknown'}).", "",
        "| task | what it answers | |", "|---|---|---|",
    ]  # fmt: skip
    lines += [f"| {name} | {task.answer} | {_some(task.outputs)} |" for name, task in tasks.items()]
    lines += ["", "## Training", "", *_training(run, recipe)]
    lines += ["", "## Figures", "", *_figures(run, tasks)]
    lines += ["", "## Groups of people", "", *_groups(run)]
    lines += ["", "## Use and limits", "", *_limits(run, tasks)]
    return "\n".join(lines) + "\n"


def _some(outputs: tuple[str, ...]) -> str:
    shown = ", ".join(outputs[:12])
    return f"{shown}, … ({len(outputs)})" if len(outputs) > 12 else shown


def _training(run: results.Run, recipe: Any) -> Iterator[str]:
    data = workdir.read(run.folder, workdir.DATA)
    counts = data["counts"].get(recipe.data.train, {})
    examples = counts.get("examples")
    size = f"{examples:,} pictures" if examples else "several sets"
    part = ""
    if recipe.data.subset < 1:
        part = f", of which a share of {recipe.data.subset:g} was used"
    elif recipe.data.labelled < 1:
        part = f", of which a share of {recipe.data.labelled:g} had labels"
    yield f"- Data: {data['name']} {data['version']}, {size}{part}; digest {data['digest']}."
    beside = ", ".join(sorted(recipe.pretexts)) or "no self-supervised loss"
    yield f"- Losses: {', '.join(sorted(recipe.tasks)) or 'none'}; beside them {beside}."
    steps = run.test.get("step", run.log[-1]["step"] if run.log else "unknown")
    yield f"- The weights are those of step {steps} ({run.test.get('weights', 'unknown')}),"
    yield f"  of batches of {recipe.batch_size}, seed {recipe.seed}; `config.json` has every key."


def _figures(run: results.Run, tasks: Mapping[str, Any]) -> Iterator[str]:
    reports = [
        json.loads(file.read_text()) for file in sorted((run.folder / "eval").glob("*.json"))
    ]
    reports = [of for of in reports if of["step"] == run.test.get("step")]
    # The test split first, then other sets; validation chose the weights, and is no figure of them.
    shown = [of for of in reports if of["split"] != run.config["data.validation"]]
    if not shown:
        yield "Not evaluated."
        return
    yield "With 95 % intervals where `python -m hmtl_jax.evaluate` gave some."
    yield ""
    yield "| data | examples | metric | value |"
    yield "|---|---|---|---|"
    for of in sorted(shown, key=lambda of: of["data"]["name"] != run.test["data"]["name"]):
        mirrored = ", with mirrored pictures" if of.get("mirrored") else ""
        where = f"{of['data']['name']} {of['data']['version']}, {of['split']}{mirrored}"
        for task in tasks:
            for name, said in results.measures(of.get(task, {})).items():
                if names.metric(name).headline:
                    yield f"| {where} | {of['examples']:,} | {task}/{name} | {said} |"


def _groups(run: results.Run) -> Iterator[str]:
    whose, found = results.by_group(run)
    if not found:
        yield "Not measured: nobody knows whom this model serves worse."
        yield "`python -m hmtl_jax.fairness` measures it where the data have groups."
        return
    yield f"On {whose}. Groups are labels of the data set, as its annotators saw them."
    yield ""
    yield "| task | by | lowest | highest | gap |"
    yield "|---|---|---|---|---|"
    for task, of in found.items():
        scale, unit = names.shown_in(of["metric"])
        for grouping, part in of["columns"].items():
            ends = []
            for end in (part["lowest"], part["highest"]):
                value = part["groups"].get(end, {}).get("value")
                ends.append(f"{end} {scale * value:.2f}{unit}" if value is not None else "–")
            gap = "–" if part["gap"] is None else f"{scale * part['gap']:.2f}{unit}"
            yield f"| {task}/{of['metric']} | {grouping} | {ends[0]} | {ends[1]} | {gap} |"


def _limits(run: results.Run, tasks: Mapping[str, Any]) -> Iterator[str]:
    yield "- For research on face analysis. Not for decisions about people, nor for telling who"
    yield "  somebody is. What a face shows is not what a person feels or is; labels are what"
    yield "  annotators saw in pictures."
    yield "- Figures hold for pictures such as those of the test split, cropped as these are."
    for task in tasks:
        each = run.test.get(task, {}).get("per_class", {})
        few = [f"{name} ({of['n']})" for name, of in each.items() if of["n"] < FEW]
        if few:
            yield f"- {task}: fewer than {FEW} test examples, so that their figures say little: "
            yield f"  {', '.join(few)}."
    yield "- The terms of the training data bind what is made of them; look them up."
