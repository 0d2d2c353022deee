"""Configuration files: YAML and TOML, read into plain mappings; a repeated key is an error."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from megacore.config.faults import fault
from megacore.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, in which a mapping may name a key only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise ConfigError(
                    [
                        fault(
                            "MC0010",
                            {f"{key_node.start_mark.name}: {key}": ""},
                            more=f"line {key_node.start_mark.line + 1}",
                        )
                    ]
                )
            seen.add(key if isinstance(key, Hashable) else id(key_node))
        return super().construct_mapping(node, deep)


def read_file(path: str) -> dict[str, Any]:
    """The content of a configuration file.

    Args:
        path: A file whose name ends in .yaml, .yml or .toml.

    Returns:
        A mapping, empty for an empty file.

    Raises:
        ConfigError: It is missing, not valid, or not a mapping.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".yaml", ".yml", ".toml"):
        raise ConfigError(
            [fault("MC0008", {"--config": path}, allowed="a name ending in .yaml, .yml or .toml")]
        )
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = tomllib.loads(text) if suffix == ".toml" else _load_yaml(text, path)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError([fault("MC0008", {"--config": path}, more=reason)]) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            [fault("MC0008", {"--config": path}, more=f"{type(content).__name__} at the top")]
        )
    return content


def _load_yaml(text: str, path: str) -> Any:
    loader = _Loader(text)
    loader.name = path
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
