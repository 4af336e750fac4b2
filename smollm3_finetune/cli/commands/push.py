"""`smollm3 push`"""

from __future__ import annotations

import json

import click

from smollm3_finetune.cli.options import debug_option
from smollm3_finetune.cli.output.push import shown_plan, shown_push
from smollm3_finetune.cli.parsing import HintingCommand
from smollm3_finetune.cli.session import prints_report


@click.command(cls=HintingCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target", metavar="RUN|DIR")
@click.argument("repo", metavar="REPO")
@click.option("--private", is_flag=True, help="Create a private repository; an existing public one is refused.")
@click.option("--revision", default=None, metavar="BRANCH", help="Branch, created if it does not exist; default: main.")
@click.option(
    "--message", default=None, metavar="TEXT", help="Commit message; default: Upload adapter, Upload merged model, …"
)
@click.option("--replace-card", is_flag=True, help="Replace the repository's README.md even if it was edited there.")
@click.option("--dry-run", is_flag=True, help="List the files and what is left out; uses no network and no token.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
@debug_option
@prints_report
def push(
    target: str,
    repo: str,
    private: bool,
    revision: str | None,
    message: str | None,
    replace_card: bool,
    dry_run: bool,
    as_json: bool,
) -> str:
    """Publish the adapter of a run, or a model, with its model card on the Hugging Face Hub.

    RUN is a finished run; its adapter is published. DIR is a saved adapter, a merged model, a quantized checkpoint or
    an exported model. REPO is OWNER/NAME, or NAME for your own account; it is created if it does not exist.

    Only files that belong to the adapter or the model are published, in one commit: no rows, samples, reports or
    optimizer states. A file that contains a token or a path of this machine is refused.

    \b
    Examples:
      smollm3 push runs/20261122-101500-tiny-lora me/my-adapter --dry-run
      smollm3 push runs/20261122-101500-tiny-lora me/my-adapter --private
      smollm3 push runs/20261122-101500-tiny-lora/merged me/my-model
    """
    from smollm3_finetune.hub.plan import plan_push
    from smollm3_finetune.hub.push import described
    from smollm3_finetune.hub.push import push as carry_out
    from smollm3_finetune.progress import for_stream

    plan = plan_push(target, repo, private=private, revision=revision, message=message, replace_card=replace_card)
    if dry_run:
        report = {"repo": repo, "dry_run": True, "private": private, "revision": revision or "main", **described(plan)}
        return json.dumps(report, ensure_ascii=False) if as_json else shown_plan(report)
    report = carry_out(plan, for_stream())
    return json.dumps(report, ensure_ascii=False) if as_json else shown_push(report)
