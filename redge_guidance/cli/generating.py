"""`redge-guidance generate`: check what is asked for, make it, write it, say it."""

import argparse
import sys

from redge_guidance.cli import images, into_file, texts
from redge_guidance.cli.common import quiet
from redge_guidance.cli.files import Target, check_targets, write_all
from redge_guidance.cli.given import EXAMPLE, TOLD, settings_of
from redge_guidance.cli.terminal import PROGRAM, SOME_FAILED, complain, in_options, is_shared, remark, say
from redge_guidance.setups.documents import write
from redge_guidance.setups.options import Options
from redge_guidance.setups.setup import assemble, model_makes_images
from redge_guidance.setups.shorthand import check_kind

_CONTENTS = {"json": "--json", "out": "--out", "trace": "--out", "save_config": "--save-config"}


def generate(args: argparse.Namespace, written: list[str], on_with: list[str]) -> int:
    """The exit code; `written` gets names of files that were written, `on_with` one that a run goes on with."""
    options, consent = settings_of(args)
    targets = _targets(options, getattr(args, "save_config", None))
    makes_images = model_makes_images(options)
    check_kind(options, makes_images)
    if "output" not in options:
        if "input" in options:
            raise ValueError(f"{options.spell('output')} must say where what is made of `--input` goes; add it.")
        if is_shared():
            raise ValueError(f"{options.spell('output')} must say where several processes write; add it.")
        if makes_images:
            images.check(options)
    else:
        into_file.check(options)
    quiet()
    setup = assemble(options, consent)
    if EXAMPLE in options.places.values():
        remark(PROGRAM, TOLD)
    if "save_config" in targets:
        kept = {name: value for name, value in setup.resolved.items() if name not in ("json", "out", "overwrite")}
        write_all([(targets["save_config"], write(kept).encode("utf-8"))])
    if "output" in options:
        on_with += [name for name in [options.get("output")] if name != "-"]
        written += ["a part"] if options.get("output") == "-" else []
        return into_file.generate(setup, options)
    setup.pipe.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    made = (images if makes_images else texts).generate(setup, options)
    write_all([(targets[name], content) for name, content in made.files.items()])
    written += [targets[name].name for name in made.files]
    if options.get("json") == "-":  # where records go, nothing else does
        print(made.report, file=sys.stderr)
    else:
        say(made.report)
    for told in dict.fromkeys(f"entry {record.index}: {record.error}" for record in made.failed):
        complain(PROGRAM, in_options(told))
    return SOME_FAILED if made.failed else 0


def _targets(options: Options, save_config: str | None) -> dict[str, Target]:
    """What is to be written, by the name of its content."""
    names = {name: options.get(name) for name in ("json", "out")} | {"save_config": save_config}
    if names["json"] == "-":
        names["json"] = "/dev/stdout"
    if names["out"] is not None:
        names["trace"] = images.trace_file(names["out"])
    targets = {key: Target(_CONTENTS[key], name) for key, name in names.items() if name is not None}
    check_targets(list(targets.values()))
    return targets
