"""The command that measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hub.cli import models
from hub.cli.commands import Command, json_option
from hub.cli.output import print_json, print_pairs
from hub.cli.quantizing import QUANTIZATIONS
from hub.cli.registry import open_registry
from hub.errors import DataError
from hub.references import is_place

if TYPE_CHECKING:
    from hub.adapter import Adapter
    from hub.composition import Operator


@click.command(
    "eval",
    cls=Command,
    examples=(
        "hub eval reviews@1 --data test.jsonl",
        "hub eval ./qa --base ./llama --data qa.csv --template '{{ question }}|||{{ answer }}' "
        "--metric rougeL --metric exact_match",
    ),
)
@click.argument("reference")
@click.option("--data", required=True, help="Rows to measure on: .jsonl, .csv or .parquet.")
@click.option("--base", help="The base model; the one that it was trained on when left out.")
@click.option("--template", help="As for `hub train`; the one of the training when left out.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help="accuracy, exact_match, rouge1, rouge2, rougeL or perplexity; more than one is fine.",
)
@click.option("--choice", "choices", multiple=True, help="A completion to choose from.")
@click.option("--batch-size", type=int, default=8, show_default=True, help="Rows at once.")
@click.option("--max-length", type=int, help="Tokens of a row, cut to fit.")
@click.option(
    "--quantize",
    type=click.Choice([*QUANTIZATIONS, "none"]),
    help="How to load the base; as it was trained when left out.",
)
@click.option("--no-record", is_flag=True, help="Don't keep the metrics in the registry.")
@json_option("reference", "metrics", "samples", "truncated", "recorded")
def evaluate_adapter(
    reference: str,
    data: str,
    base: str | None,
    template: str | None,
    metrics: tuple[str, ...],
    choices: tuple[str, ...],
    batch_size: int,
    max_length: int | None,
    quantize: str | None,
    no_record: bool,
    as_json: bool,
) -> None:
    """Measure an adapter or a composition, and record its metrics.

    REFERENCE is name@number, name@alias, name, ./folder, hf://org/repo@revision, or a composition
    of such: 'stack(de@2, fr)'. Metrics are recorded of versions.
    """
    with models.quiet_libraries():
        import hub
        from hub.composition import is_written
        from hub.training.data import read_examples

        registry, version = open_registry(), None
        if is_place(reference) or is_written(reference):
            adapter = hub.load(reference)
        else:
            version = registry.get(reference)
            adapter = registry.load(version)
            if not no_record:
                registry.check_writable()  # before hours are spent
        label = version.reference if version is not None else reference
        parts = list_adapters(adapter)
        template = template or find_template(adapter, label)
        read_examples(data, template)
        model, tokenizer = models.load_base_of(parts, label, base, quantize)
        evaluation = hub.evaluate(
            model,
            adapter,
            data,
            tokenizer=tokenizer,
            template=template,
            metrics=metrics or None,
            choices=choices or None,
            batch_size=batch_size,
            max_length=max_length,
        )
    recorded = version is not None and not no_record
    if version is not None and recorded:
        for name, value in evaluation.metrics.items():
            registry.record_metric(
                version, name, value, dataset=Path(data).name, samples=evaluation.samples
            )
    if as_json:
        print_json(
            {
                "reference": label,
                "metrics": evaluation.metrics,
                "samples": evaluation.samples,
                "truncated": evaluation.truncated,
                "recorded": recorded,
            }
        )
        return
    click.echo(click.style(label, bold=True))
    print_pairs({name: f"{value:.6g}" for name, value in evaluation.metrics.items()})
    print_pairs({"samples": str(evaluation.samples), "recorded": "yes" if recorded else "no"})


def list_adapters(composition: Adapter | Operator) -> list[Adapter]:
    """The adapters of what was loaded, each once, those first whose trained heads answer."""
    from hub.attachment import routing

    there = [*routing.list_answering(composition), *routing.list_adapters([composition])]
    return list(dict.fromkeys(there))


def find_template(composition: Adapter | Operator, label: str) -> str:
    """The template that adapters were trained with, of a fuse what leads it. Raises DataError where
    that is none, or more than one."""
    from hub.attachment import routing

    answering = list_templates(routing.list_answering(composition))
    templates = answering or list_templates(list_adapters(composition))
    if not templates:
        raise DataError(f"{label} does not say its template; give it with --template")
    if len(templates) > 1:
        raise DataError(
            f"the parts of {label} were trained with {len(templates)} templates, {templates[0]!r} "
            "and others; give one with --template"
        )
    return templates[0]


def list_templates(parts: Sequence[Adapter]) -> list[str]:
    """The templates that these say they were trained with."""
    trainings = [part.lineage.get("training") for part in parts]
    said = {item.get("template") for item in trainings if isinstance(item, dict)}
    return sorted(text for text in said if isinstance(text, str))
