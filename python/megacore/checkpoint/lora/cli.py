"""`megacore lora merge | export | import`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megacore.checkpoint.lora.config import LoraToolConfig
from megacore.config.parser import parse
from megacore.errors import EXIT_OK, CheckpointError

# torch takes a second to import; faults of the command line are reported before that.
if TYPE_CHECKING:
    from megacore.checkpoint.convert.hf.family import Family
    from megacore.checkpoint.convert.model_stream import ModelDescription
    from megacore.checkpoint.lora.adapter import Adapters


def main(argv: Sequence[str] | None = None) -> int:
    """Works on adapters as a command line says; returns the exit code."""
    parsed = parse(
        [LoraToolConfig],
        sys.argv[1:] if argv is None else argv,
        prog="megacore lora",
        description="Low-rank adapters: join them with their base model, exchange them with PEFT.",
        abbreviations=True,
    )
    config: LoraToolConfig = parsed.configs[LoraToolConfig]
    {"merge": _merge, "export": _export, "import": _import}[config.action](config)
    return EXIT_OK


def _merge(config: LoraToolConfig) -> None:
    from megacore.checkpoint.adapters import find_base
    from megacore.checkpoint.convert import registry
    from megacore.checkpoint.convert.engine import convert
    from megacore.checkpoint.convert.model_stream import SourceOptions, TargetOptions
    from megacore.checkpoint.lora.adapter import read_adapters
    from megacore.checkpoint.lora.merge import MergedSource
    from megacore.checkpoint.lora.peft import import_peft, is_peft

    where, directory, out = map(Path, config.paths)
    loader = registry.detect(where)
    base = registry.open_source(where, SourceOptions(), name=loader)
    try:
        if is_peft(directory):
            family = _family(config, base.description)
            adapters = import_peft(directory, family=family, config=base.description.config)
        else:
            adapters = read_adapters(directory)
            if loader == "core" and not config.any_base:
                find_base(adapters.arguments, Path(adapters.source), given=str(where))
        saver = config.to or "core"
        options = TargetOptions(
            family=config.family, ckpt_format="torch_dist" if saver == "core" else None
        )
        target = registry.make_target(saver, options)
        plan = convert(MergedSource(base, adapters), target, out)
    finally:
        base.close()
    print(
        f"wrote {out} ({target.format_name}): {len(plan.tensors)} tensors, of which "
        f"{len(adapters.layers)} with adapters of rank {adapters.rank}, scaled by {adapters.scale}"
    )


def _export(config: LoraToolConfig) -> None:
    from megacore.checkpoint.adapters import find_base
    from megacore.checkpoint.convert import registry
    from megacore.checkpoint.convert.model_stream import SourceOptions
    from megacore.checkpoint.lora.adapter import read_adapters
    from megacore.checkpoint.lora.peft import export_peft

    directory, out = map(Path, config.paths)
    adapters = read_adapters(directory)
    found = find_base(adapters.arguments, Path(adapters.source), given=config.base)
    base = registry.open_source(found, SourceOptions(), name="core")
    try:
        description = base.description
    finally:
        base.close()
    family = _family(config, description)
    export_peft(
        adapters,
        out,
        family=family,
        config=description.config,
        base=config.base_name or str(found),
    )
    print(f"wrote {out} (PEFT, {family.name}): {_summary(adapters)}")


def _import(config: LoraToolConfig) -> None:
    from megacore.checkpoint import find_checkpoint, open_checkpoint
    from megacore.checkpoint.adapters import base_arguments
    from megacore.checkpoint.convert import registry
    from megacore.checkpoint.convert.model_stream import SourceOptions
    from megacore.checkpoint.lora.adapter import write_adapters
    from megacore.checkpoint.lora.merge import refuse_misfits
    from megacore.checkpoint.lora.peft import import_peft

    directory, where, out = map(Path, config.paths)
    found = find_checkpoint(where)
    if found is None:
        raise CheckpointError(
            f"{where}: no checkpoint found there; convert the base model first (megacore convert)"
        )
    base = registry.open_source(found, SourceOptions(), name="core")
    try:
        description = base.description
        family = _family(config, description)
        adapters = import_peft(directory, family=family, config=description.config)
        refuse_misfits(base, adapters)
    finally:
        base.close()
    arguments = open_checkpoint(found).values.get("args")
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{found}: says nothing about its model")
    write_adapters(adapters, out, {**arguments, **base_arguments(found)})
    print(f"wrote {out}: {_summary(adapters)}; train with --load {out} --lora-rank {adapters.rank}")


def _summary(adapters: Adapters) -> str:
    return (
        f"{len(adapters.layers)} adapters of rank {adapters.rank}, alpha {adapters.alpha:g}, on "
        f"{', '.join(adapters.targets)}"
    )


def _family(config: LoraToolConfig, description: ModelDescription) -> Family:
    from megacore.checkpoint.convert.hf.families import family_for, family_named
    from megacore.checkpoint.convert.hf.origin import Origin

    if config.family is not None:
        return family_named(config.family)
    return family_for(description.config, Origin.of_description(description).family)
