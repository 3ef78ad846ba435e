"""The command that trains."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hub.cli import models
from hub.cli.commands import Command, json_option
from hub.cli.output import format_metrics, notify, print_json, print_pairs
from hub.cli.quantizing import QUANTIZATIONS
from hub.cli.registry import open_registry
from hub.cli.within import read_within
from hub.errors import FileError, HubError
from hub.references import locate_folder

if TYPE_CHECKING:
    from hub.adapter import Adapter
    from hub.composition import Operator
    from hub.registration import Registry
    from hub.training.metrics import Kind
    from hub_registry import Version

TEMPLATE = "{{ text }}|||{{ label }}"
CHECKPOINTS = "checkpoints"


@click.command(
    "train",
    cls=Command,
    examples=(
        "hub train --base bert-base-uncased --method lora --data reviews.jsonl --name reviews",
        "hub train --base ./llama --method lora --set r=16 --set targets=attention "
        "--data qa.csv --template '{{ question }}|||{{ answer }}' --name qa --task qa",
        "hub train --base ./llama --quantize nf4 --method lora --data reviews.jsonl --name small",
        "hub train --base ./llama --method lora --within 'stack(de@2, new)' "
        "--data reviews.jsonl --name reviews",
        "hub train --base ./llama --method fusion --within 'fuse(qa@1, sst2@3; new)' "
        "--data mixed.jsonl --name fused",
    ),
)
@click.option("--base", required=True, help="The base model: a folder, org/repo, or org/repo@rev.")
@click.option("--method", required=True, help="How to adapt it; `hub methods` lists them.")
@click.option("--data", required=True, help="Rows to learn from: .jsonl, .csv or .parquet.")
@click.option(
    "--template",
    default=TEMPLATE,
    show_default=True,
    help="Jinja2: prompt and completion (or label), divided by |||; columns are its variables.",
)
@click.option("--name", help="Register the adapter as the next version of this name.")
@click.option("--task", help="What the adapter is for.")
@click.option("--output", help="Write the adapter to this folder, its checkpoints beside it.")
@click.option(
    "--kind",
    type=click.Choice(models.KINDS),
    help="What the base learns; when left out, what it was made for.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="OPTION=VALUE",
    help="An option of the method, as JSON or text; `hub methods NAME` lists them.",
)
@click.option(
    "--within",
    metavar="COMPOSITION",
    help="Train it together with adapters that stay as they are, its place written `new`.",
)
@click.option("--eval-data", help="Rows to measure at every checkpoint; the best one is kept.")
@click.option("--metric", help="What the best is chosen by: accuracy, perplexity, rougeL...")
@click.option("--choice", "choices", multiple=True, help="A completion to choose from.")
@click.option("--epochs", type=float, default=3, show_default=True, help="Times over the data.")
@click.option("--max-steps", type=int, help="Optimizer steps, instead of epochs.")
@click.option("--learning-rate", type=float, default=2e-4, show_default=True, help="The highest.")
@click.option("--batch-size", type=int, default=8, show_default=True, help="Rows at once.")
@click.option(
    "--optimizer", help="transformers' name of one, such as adamw_8bit or paged_adamw_8bit."
)
@click.option("--max-length", type=int, help="Tokens of a row, cut to fit.")
@click.option(
    "--quantize",
    type=click.Choice(list(QUANTIZATIONS)),
    help="Load the base in 4 bits (nf4, as QLoRA) or 8 bits a weight; needs bitsandbytes.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="For all that is random.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --output, exactly.")
@json_option(
    *("reference", "output", "metrics", "loss", "steps", "best_step", "seconds", "truncated"),
    *("trainable", "total", "within"),
)
def train_adapter(
    base: str,
    method: str,
    data: str,
    template: str,
    name: str | None,
    task: str | None,
    output: str | None,
    kind: Kind | None,
    settings: tuple[str, ...],
    within: str | None,
    eval_data: str | None,
    metric: str | None,
    choices: tuple[str, ...],
    epochs: float,
    max_steps: int | None,
    learning_rate: float,
    batch_size: int,
    optimizer: str | None,
    max_length: int | None,
    quantize: str | None,
    seed: int,
    resume: bool,
    as_json: bool,
) -> None:
    """Train a new adapter, and register it, or write it to a folder.

    The base stays as it is. For a classifier the number of labels is found in the data.
    """
    if name is None and output is None:
        raise click.UsageError("say where the adapter goes: --name, --output, or both")
    if resume and output is None:
        raise click.UsageError("--resume needs --output, the folder of the run")
    if eval_data is None and (metric is not None or choices):
        what = "--metric" if metric is not None else "--choice"
        raise click.UsageError(f"{what} needs --eval-data, the rows to measure on")
    config = dict(parse_setting(text) for text in settings)
    with models.quiet_libraries():
        import torch

        import hub
        from hub.discovery import installed_methods
        from hub.quantization import count_weights
        from hub.training.data import read_examples

        # What can be wrong is looked at before hours are spent.
        installed_methods().get(method).make_config(**config)
        registry = open_registry()
        if name is not None:
            check_registry(registry, name, task)
        around = read_within(within, method, registry) if within is not None else None
        folder = locate_folder(output) if output is not None else None
        if folder is not None and not resume:
            check_output(folder)
        examples = read_examples(data, template)
        if eval_data is not None:
            read_examples(eval_data, template)
        base_config = models.load_config(base)
        kind = kind or models.choose_kind(base_config)
        labels = None
        if kind == "classification":
            labels = around.count_classes() if around is not None else None
            labels = labels or models.count_labels(
                [example.completion for example in examples.items], base_config
            )
        model = models.load_model(base, kind, labels, quantize)
        tokenizer = models.load_tokenizer(base)
        torch.manual_seed(seed)
        composition: Adapter | Operator
        if around is None:
            adapter = composition = hub.Adapter.create(method, model, **config)
        else:
            adapter, composition = around.create(method, model, config)
        adapter.task = task
        result = hub.train(
            model,
            composition,
            data,
            tokenizer=tokenizer,
            template=template,
            eval_dataset=eval_data,
            metric=metric,
            choices=choices or None,
            epochs=epochs,
            max_steps=max_steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            optimizer=optimizer,
            max_length=max_length,
            seed=seed,
            output=folder / CHECKPOINTS if folder is not None else None,
            resume=resume,
            trainable=adapter,
        )
        if folder is not None:
            adapter.save(folder)
        version = None
        if name is not None:
            parents = around.parents if around is not None else ()
            version = register(registry, adapter, name, folder, parents)
        shown = around.show(version.reference if version is not None else None) if around else None
        trainable = sum(tensor.numel() for tensor in adapter.tensors.values())
        total = count_weights(model)
    if as_json:
        print_json(
            {
                "reference": version.reference if version is not None else None,
                "output": output,
                "metrics": result.metrics,
                "loss": result.loss,
                "steps": result.steps,
                "best_step": result.best_step,
                "seconds": result.seconds,
                "truncated": result.truncated,
                "trainable": trainable,
                "total": total,
                "within": shown,
            }
        )
        return
    click.echo(click.style(version.reference if version is not None else output, bold=True))
    print_pairs(
        {
            "metrics": format_metrics(result.metrics) or None,
            "loss": f"{result.loss:.4g}",
            "steps": f"{result.steps} in {result.seconds:.1f} s"
            + (f", the best was {result.best_step}" if result.best_step else ""),
            "trainable": f"{trainable:,} of {total:,} ({trainable / total:.2%})",
            "prompts cut": f"{result.truncated}, to fit --max-length" if result.truncated else None,
            "folder": output,
            "within": shown,
        }
    )


def parse_setting(text: str) -> tuple[str, Any]:
    """`r=8` as ("r", 8): JSON where it is some, else text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r} is no option of a method; write --set r=8")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def check_registry(registry: Registry, name: str, task: str | None) -> None:
    """Raises BadName, StorageError or SchemaError where a version could not be added."""
    from hub_registry.names import check_name, check_text

    check_name(name)
    if task is not None:
        check_text(task, "task")
    registry.check_writable()
    registry.blobs.discard(registry.blobs.stage(b""))


def check_output(folder: Path) -> None:
    """Raises FileError where a folder holds an adapter, or is none."""
    from hub.files import FILES

    if folder.exists() and not folder.is_dir():
        raise FileError(f"{folder} is a file; give --output a folder")
    held = [name for name in FILES if (folder / name).exists()]
    if held:
        raise FileError(f"{folder} holds an adapter already ({held[0]}); give another --output")


def register(
    registry: Registry,
    adapter: Adapter,
    name: str,
    folder: Path | None,
    parents: Sequence[str] = (),
) -> Version:
    """The new version. Where that fails what was trained is written elsewhere. Raises HubError,
    which says where."""
    try:
        return registry.add(adapter, name=name, parents=parents)
    except HubError as error:
        kept = folder or adapter.save(tempfile.mkdtemp(prefix=f"{name}-"))
        notify(f"the trained adapter is in {kept}; add it with `hub import {kept} --name {name}`")
        raise error
