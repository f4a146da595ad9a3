"""How Jinja reads the templates of a package."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


def environment_of(package: str, *, is_html: bool) -> jinja2.Environment:
    """For the files in `templates` of `package`: a name that is not there is an error, and HTML escapes by itself.

    What Markdown shows of the outside goes through markup.py, which knows where in Markdown it stands.
    """
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        undefined=jinja2.StrictUndefined,
        autoescape=is_html,  # noqa: S701 - Markdown is no HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not is_html,
    )
