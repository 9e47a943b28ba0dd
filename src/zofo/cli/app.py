"""The verbs of the command line; each only reads its arguments, calls the library and shows what came back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

app = typer.Typer(
    help="Fine-tune language models in the memory of inference.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
tune = typer.Typer(help="Find a good value of an option by short trials.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(tune, name="tune")
bench = typer.Typer(help="Measure what work costs on this machine.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench")
_SHOWN = 400  # characters of a prompt
out = Console()
err = Console(stderr=True)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, for example training.steps=20", show_default=False)
]
DataDir = Annotated[
    Path | None, typer.Option(help="A folder with the task's rows, a file for each split.", show_default=False)
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Rows of your own: a JSONL, CSV or parquet file, a folder of them, or a Hub id.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Force = Annotated[bool, typer.Option("--force", help="Write over what is there.")]
BaseModel = Annotated[str | None, typer.Option("--model", help="Where the base model is now, if it has moved.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Let the model's repository run its own code.")]


def _config(arguments: list[str] | None, data_dir: Path | None = None, data: str | None = None) -> Any:
    """A configuration from arguments: a YAML file or a recipe first, if any, then key=value."""
    from zofo.training import read_config

    given = list(arguments or [])
    file = given.pop(0) if given and "=" not in given[0] else None
    if data_dir is not None:
        given.append(f"task.data_dir={json.dumps(str(data_dir))}")
    if data is not None:
        given.append(f"task.data={json.dumps(data)}")
    return read_config(file, given)


def _one_line(text: str) -> str:
    """A text with its line breaks written out, and the middle of a long one left out."""
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN // 2]} [...] {text[-_SHOWN // 2 :]}"
    return text.replace("\n", "\\n")


@app.command()
def train(
    arguments: Overrides = None, data_dir: DataDir = None, data: Data = None, trust_remote_code: RemoteCode = False
) -> None:
    """Train: zofo train [CONFIG.yaml | RECIPE] [key=value ...]."""
    from zofo.errors import Stopped
    from zofo.training import as_percent
    from zofo.training import train as run_training

    try:
        run = run_training(_config(arguments, data_dir, data), err, trust_remote_code)
    except Stopped as stop:
        err.print(f"{stop.message}\nhint: {stop.hint}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(stop.exit_code) from stop
    summary = run.summary
    score = f"{summary['metric']} {as_percent(summary[summary['metric']])} on {summary['split']}"
    after = f"(majority {as_percent(summary['majority'])}) after {summary['queries']} queries"
    out.print(f"{score} {after}", highlight=False, markup=False, soft_wrap=True)
    for variant, scored in list(summary["variants"].items())[1:]:
        other = f"{variant}: {summary['metric']} {as_percent(scored[summary['metric']])}"
        out.print(other, highlight=False, markup=False, soft_wrap=True)
    out.print(f"run: {run.path}", highlight=False, markup=False, soft_wrap=True)


@app.command(name="eval")
def evaluate(
    arguments: Annotated[list[str], typer.Argument(help="A run folder, or key=value for a zero-shot score.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    variant: Annotated[str | None, typer.Option(help="Which model of the run, for example lower_adapter.")] = None,
    best: Annotated[bool, typer.Option("--best", help="As of the best evaluation, not the last step.")] = False,
    data_dir: DataDir = None,
    data: Data = None,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Score a run, or an untrained model: zofo eval RUN, or zofo eval model=... task=...."""
    from zofo.training import as_percent, evaluate_run, evaluate_zero_shot

    if "=" not in arguments[0] and not arguments[0].endswith((".yaml", ".yml")):
        run, overrides = Path(arguments[0]), arguments[1:]
        score = evaluate_run(run, overrides, split, variant, best, data_dir, trust_remote_code, data)
    else:
        score = evaluate_zero_shot(_config(arguments, data_dir, data), split, trust_remote_code)
    if as_json:
        typer.echo(json.dumps({"split": split, **score.as_dict()}))
        return
    text = f"{score.metric} {as_percent(score.score)} on {split} (majority {as_percent(score.majority)})"
    also = "".join(f", {name} {as_percent(value)}" for name, value in score.also.items())
    out.print(f"{text}{also}, loss {score.loss:.4f}", highlight=False, soft_wrap=True)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    texts: Annotated[list[str], typer.Argument(help="Texts; or rows as JSON objects, for tasks with several columns.")],
    variant: Annotated[str | None, typer.Option(help="Which model of the run.")] = None,
    best: Annotated[bool, typer.Option("--best", help="As of the best evaluation, not the last step.")] = False,
    model: Annotated[str | None, typer.Option(help="Where the base model is now, if it has moved.")] = None,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Answer rows with a trained run: zofo predict RUN 'A joy from start to finish.'."""
    from zofo.training import as_percent
    from zofo.training import predict as label_texts

    for prediction in label_texts(run, texts, variant, best, model, trust_remote_code):
        if as_json:
            typer.echo(json.dumps(prediction.as_dict(), ensure_ascii=False))
            continue
        chosen = str(prediction.label)
        if prediction.probability is not None:
            chosen += f"  ({prediction.answer.strip()}, {as_percent(prediction.probability)})"
        out.print(Text(f"{chosen}  {prediction.text}"))


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    step: Annotated[int | None, typer.Option(help="After how many steps; by default all.", show_default=False)] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Write the backbone there, as a transformers folder.")
    ] = None,
    folded: Annotated[
        bool, typer.Option("--folded", help="Add the updates up and write them at once: faster, equal up to rounding.")
    ] = False,
    force: Force = False,
    model: BaseModel = None,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Rebuild the weights of any step from the base model and the trajectory, and check them: zofo replay RUN."""
    from zofo.shipping import replay_run

    found = replay_run(run, step, folder, fold=folded, force=force, model=model, remote_code=trust_remote_code)
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
    else:
        for line in found.lines():
            out.print(line, highlight=False, markup=False, soft_wrap=True)
    if found.failed:
        raise typer.Exit(1)


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Find the first step in which two runs differ, and what does; exit code 1 if anything differs: zofo diff A B."""
    from zofo.shipping import compare_runs

    found = compare_runs(first, second)
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
    else:
        for line in found.lines():
            out.print(line, highlight=False, markup=False, soft_wrap=True)
    if not found.equal:
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    merged: Annotated[
        Path | None, typer.Option(help="A new transformers folder: the whole model.", show_default=False)
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="A new peft folder: the adapter.", show_default=False)] = None,
    patch: Annotated[
        Path | None, typer.Option(help="A new file: what training added, for zofo apply.", show_default=False)
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Which model of the run, for example lower_adapter.")] = None,
    best: Annotated[bool, typer.Option("--best", help="As of the best evaluation, not the last step.")] = False,
    folded: Annotated[
        bool, typer.Option("--folded", help="Of a patch: the sum of the updates in place of each of them.")
    ] = False,
    force: Force = False,
    repo: Annotated[
        str | None, typer.Option("--push", help="Also upload it to this repository of the Hub.", show_default=False)
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let a repository that --push makes be public.")] = False,
    model: BaseModel = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Write a run's model as others load it: zofo export RUN --merged DIR | --adapter DIR | --patch FILE."""
    from zofo.shipping import export_run, push, the_one_form

    kind, place = the_one_form(merged=merged, adapter=adapter, patch=patch)
    found = export_run(
        run,
        kind,
        place,
        variant=variant,
        best=best,
        force=force,
        fold=folded,
        model=model,
        remote_code=trust_remote_code,
    )
    out.print(f"wrote {found.path} ({found.size:,} bytes)", highlight=False, markup=False, soft_wrap=True)
    if repo is not None:
        address = push(found, repo, private=not public)
        out.print(f"uploaded to {address}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(help="A patch, as zofo export RUN --patch FILE writes it.")],
    base: Annotated[str, typer.Option(help="The base model: an embedded name, a folder or a Hub id.")],
    folder: Annotated[Path, typer.Option("--out", help="The new transformers folder.")],
    folded: Annotated[
        bool, typer.Option("--folded", help="Add the updates up and write them at once: faster, equal up to rounding.")
    ] = False,
    force: Force = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Make the trained model of its base model and a patch: zofo apply FILE --base MODEL --out DIR."""
    from zofo.shipping import apply_patch

    found = apply_patch(file, base, folder, force, folded, trust_remote_code)
    for line in found.lines():
        out.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def preview(
    arguments: Overrides = None,
    rows: Annotated[int, typer.Option(help="How many examples to show.", min=1)] = 3,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    data_dir: DataDir = None,
    data: Data = None,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Show what the model sees: prompts, candidates, what is scored, lengths."""
    from zofo.training import preview as look

    seen = look(_config(arguments, data_dir, data), split, rows, trust_remote_code)
    if as_json:
        typer.echo(json.dumps(seen.as_dict(), ensure_ascii=False))
        return
    for example in seen.examples:
        out.print(Text(example.where, style="dim"))
        for candidate, tokens, gold in example.candidates:
            scored = Text(candidate, style="bold green" if gold else "bold")
            out.print(Text.assemble("  ", (repr(example.prompt)[1:-1], ""), scored, (f"  scored: {tokens}", "dim")))
    lengths = f"shortest {seen.shortest}, mean {seen.mean:.1f}, longest {seen.longest}"
    sequences = "one sequence" if seen.sequences == 1 else f"{seen.sequences} sequences"
    text = f"{seen.count} examples of {split}; tokens: {lengths}; {sequences} an example"
    out.print(text, highlight=False, soft_wrap=True)


@app.command()
def validate(arguments: Overrides = None, data_dir: DataDir = None, data: Data = None, as_json: AsJson = False) -> None:
    """Check a task and all its rows, without a model: zofo validate task=my.yaml."""
    from zofo.training import as_percent
    from zofo.training import validate as check

    report = check(_config(arguments, data_dir, data))
    if as_json:
        typer.echo(json.dumps(report.as_dict(), ensure_ascii=False))
        return
    about = report.task
    out.print(Text(f"{about['name']}: {about['kind']}, scored by {', '.join(about['scores'])}", style="bold"))
    if about["about"]:
        out.print(Text(about["about"], style="dim"), soft_wrap=True)
    for prompt, text, right in report.example:
        shown = Text.assemble((f"{prompt}: ", "bold"), _one_line(text), (_one_line(right), "bold green"))
        out.print(shown, soft_wrap=True)
    for split, found in report.splits.items():
        right = ", ".join(f"{name}: {count}" for name, count in found.right.items())
        line = f"{split}: {found.rows} rows; majority {as_percent(found.majority)}" + (f" ({right})" if right else "")
        out.print(line, highlight=False, soft_wrap=True)
    out.print("every row can be used", highlight=False)


@app.command()
def copy(
    name: Annotated[str, typer.Argument(help="A task of `zofo list tasks`, or a recipe of `zofo list recipes`.")],
    file: Annotated[Path, typer.Argument(help="The new file, for example my.yaml.")],
) -> None:
    """Copy a packaged task or recipe to a file of your own, to edit: zofo copy sst2 my.yaml."""
    from zofo.recipes import recipe_names
    from zofo.training import copy_recipe, copy_task

    is_recipe = name in recipe_names()
    (copy_recipe if is_recipe else copy_task)(name, file)
    use = f"zofo train {file}" if is_recipe else f"zofo validate task={file}"
    out.print(f"wrote {file}; edit it, then: {use}", highlight=False, soft_wrap=True)


@app.command(name="list")
def list_names(
    kind: Annotated[str | None, typer.Argument(help="models, tasks, methods, recipes, noises ...")] = None,
    as_json: AsJson = False,
) -> None:
    """Names that a configuration can use."""
    from zofo.studies import study_names
    from zofo.training import names

    found = names(kind, {"studies": study_names()})
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table("kind", "name", "what it is", box=None, pad_edge=False)
    for group, entries in found.items():
        for number, (name, about) in enumerate(entries.items()):
            table.add_row(group if number == 0 else "", name, Text(about))
    out.print(table)


@app.command()
def env(as_json: AsJson = False) -> None:
    """Versions, device and folders, for a report."""
    from zofo.training import describe_environment

    found = describe_environment()
    if as_json:
        typer.echo(json.dumps(found))
        return
    for name, value in found.items():
        out.print(f"{name:14} {value}", highlight=False, soft_wrap=True)


@tune.command(name="lr")
def tune_lr(
    arguments: Overrides = None,
    steps: Annotated[int, typer.Option(help="Steps of each trial.", min=1)] = 12,
    data_dir: DataDir = None,
    data: Data = None,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """The largest stable learning rate of method=mezo: zofo tune lr [CONFIG.yaml] [key=value ...]."""
    from zofo.training import Trial
    from zofo.training import tune_lr as search

    def show(trial: Trial) -> None:
        verdict = "stable" if trial.stable else "unstable"
        err.print(f"lr {trial.lr:.1e}: loss {trial.loss:.3f} after {steps} steps, {verdict}", highlight=False)

    found = search(_config(arguments, data_dir, data), steps, show, trust_remote_code)
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
        return
    work = f"{len(found.trials)} trials of {steps} steps, {found.counts.queries} queries"
    out.print(
        f"largest stable learning rate {found.largest:.1e} (loss before: {found.loss:.3f}; {work})", highlight=False
    )
    out.print(f"train with a quarter of it: method.rule.lr={found.lr:.1e}", highlight=False)


@bench.command(name="step")
def bench_step(
    model: Annotated[str, typer.Option(help="An embedded model, a folder or a Hub id.")] = "smollm2-135m",
    rows: Annotated[int, typer.Option(help="Examples in the batch.")] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens of each example's prompt.")] = 64,
    rank: Annotated[int, typer.Option(help="Rank of the low-rank noise.")] = 1,
    repeats: Annotated[int, typer.Option(help="Rounds in which every way is timed.")] = 5,
    dtype: Annotated[str, typer.Option(help="Number type: float32, bfloat16 or float16.")] = "float32",
    file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.", show_default=False)] = None,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure peaks, each in its own process.")
    ] = True,
) -> None:
    """Time and memory of one training step in every way, beside inference on the same batch."""
    from zofo.studies import StepOptions
    from zofo.studies import bench_step as measure

    options = StepOptions(model, rows, tokens, rank, repeats, dtype)
    report = measure(options, memory, file, lambda text: err.print(Text(text, style="dim"), soft_wrap=True))
    out.print(report.table())


@app.command()
def study(
    name: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file, or a study of `zofo list studies`.")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where the runs and report.md go; by default runs/NAME.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show the runs and the time they would take, and stop.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Write the results of what is done, and stop.")] = False,
    jobs: Annotated[int, typer.Option(help="Runs at a time, each in a process of its own.", min=1)] = 1,
    data: Annotated[
        Path | None, typer.Option(help="A folder that holds a folder for each task.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over a key of the file.", show_default=False)
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out tasks whose folder is not there.")
    ] = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Compare methods, as a file says; stopped at any time and typed again, it goes on: zofo study FILE."""
    from zofo.errors import ConfigError
    from zofo.studies import plan_study, read_study, report_study, run_study

    if plan and report:
        raise ConfigError("--plan shows runs and --report writes results: a command does one of them", "leave one out")
    asked = read_study(name, settings or [], data, skip_missing)
    folder = folder or Path("runs") / asked.name
    if plan:
        for note in asked.notes:
            err.print(Text(note), soft_wrap=True)
        tell = lambda text: err.print(Text(text, style="dim"), soft_wrap=True)  # noqa: E731
        planned = plan_study(asked, folder, jobs, trust_remote_code, tell)
        out.print(planned.table())
        for line in planned.lines():
            out.print(line, highlight=False, markup=False, soft_wrap=True)
        return
    found = report_study(asked, folder) if report else run_study(asked, folder, err, jobs, trust_remote_code)
    failed = f", {found.failed} of them failed" if found.failed else ""
    missing = f"; {found.missing} are not done" if found.missing else ""
    out.print(f"{found.done} runs are done{failed}{missing}", highlight=False, soft_wrap=True)
    out.print(f"report: {found.folder / 'report.md'}", highlight=False, soft_wrap=True)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where the runs and summary.json go.")] = Path("runs/demo"),
) -> None:
    """SmolLM2-135M learns to judge movie reviews: Bilevel-ZOFO, MeZO and FO-LoRA at equal queries."""
    from zofo.studies import run_demo

    run_demo(folder, out)
