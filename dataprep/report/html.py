"""Pages that need nothing but themselves: one environment of templates, one style. Imports little."""

from pathlib import Path

import jinja2


def environment(*templates: Path) -> jinja2.Environment:
    """Templates of some folders, which may include "style.css"; what they are given is escaped, and must be there."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([*templates, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
