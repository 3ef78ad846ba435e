"""How much of what full fine-tuning gains the adapters of `hub demo` gain too, for three seeds.

    python benchmarks/demo_recovery.py [--seeds 0 1 2]

The demo's base is trained once and kept under HUB_HOME. Printed is, for each task, seed and
method, (adapter - base) / (full - base) of the task's metric on rows held out: 1 is all of what
full fine-tuning gains. The classifier's base is the frozen model under a trained head.
"""

from __future__ import annotations

import argparse

from hub.cli.models import load_tokenizer, quiet_libraries
from hub.demo.corpus import read_library
from hub.demo.pretraining import RECIPE, keep_base
from hub.demo.report import format_value
from hub.demo.tasks import make_english_task, make_packages_task
from hub.demo.trials import recover, run_trials
from hub_registry.registry import find_home


def main() -> None:
    """Print a line for each task and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    with quiet_libraries():
        library = read_library()
        base = str(keep_base(find_home(), library, RECIPE, print))
        tokenizer = load_tokenizer(base)
        for task in (make_packages_task(library), make_english_task()):
            for seed in seeds:
                trials, _ = run_trials(task, base, tokenizer, seed, lambda line: None)
                told = [
                    f"{trial.learner} {format_value(task, trial.value)}"
                    f" ({recover(task, trials, trial):.2f} of full, {trial.share:.1%} trained)"
                    for trial in trials
                ]
                print(f"{task.name}, seed {seed}: {'; '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
