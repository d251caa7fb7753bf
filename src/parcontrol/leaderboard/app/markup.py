"""HTML from untrusted text: names, reasons and outputs of models are shown as they are and never act.

Everything goes through Jinja with autoescape, or through `Markup.format`, which escapes alike. Braces, dollar signs and
backticks become entities too, because the page's HTML components take them for templates.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("parcontrol.leaderboard.app", "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATE_SIGNS = re.compile(r"[{}$`]")
# What the Hub takes as a name of a model; anything else gets no link.
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII).fullmatch
_HUB = "https://huggingface.co"


def render(template: str, **values: Any) -> str:
    """Returns `templates/<template>.html.jinja` with values in it, safe as the value of an HTML component."""
    return harmless(_ENVIRONMENT.get_template(f"{template}.html.jinja").render(**values))


def harmless(html: str) -> str:
    """Returns HTML in which nothing is left that an HTML component would take for its template's."""
    return _TEMPLATE_SIGNS.sub(lambda sign: f"&#{ord(sign[0])};", html)


def hub_link(model: str, sha: str | None = None) -> Markup | None:
    """Returns the address of a model's page on the Hub, at a commit if it is one; None for what is not on the Hub."""
    if not _ON_HUB(model) or model.startswith("local/"):
        return None
    commit = f"/tree/{sha}" if sha and re.fullmatch(r"[0-9a-f]{40}", sha) else ""
    return Markup("{}/{}{}").format(_HUB, quote(model), commit)
