"""Who looks at the page, and as whom they may submit.

On a Space everybody signs in with the Hub, and the user is the one that the Hub names. On this machine, with a local
store, it is the account that runs the page, for browsers of this machine only. Nobody ever submits as the owner of the
token that the page itself may hold.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store.base import Store

# What Gradio needs to let people sign in; with `hf_oauth: true` a Space has them all.
_OAUTH_VARIABLES = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")
_OF_PROXIES = ("x-forwarded-for", "forwarded", "x-real-ip", "via")
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "[::1]"})

NOT_SIGNED_IN = "sign in with Hugging Face first: a submission counts for the account that makes it"
NO_SIGN_IN = "this Space has no sign-in: its owner has to add `hf_oauth: true` to its README"
OWN_TOKEN = (
    "this page shows a leaderboard on the Hub and cannot tell who you are: submit with cli/submit-cli.py and a token "
    "of your own in H4_TOKEN"
)
OTHER_MACHINE = (
    "this leaderboard lies on the machine that runs the page: submit from a browser there, at localhost, or with "
    "cli/submit-cli.py"
)
OTHER_SITE = "the page of another site has sent this: submit from this page itself"


@dataclass(frozen=True)
class Hosting:
    """Where the page runs.

    Attributes:
        space: Whether it is a Space, where a proxy of the Hub says who the clients are.
        sign_in: Whether people can sign in with the Hub.
        hosts: Names of the Space, as browsers see them.
    """

    space: bool = False
    sign_in: bool = False
    hosts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Visitor:
    """Who asks for something.

    Attributes:
        key: Tells visitors apart: the user, or the address.
        user: As whom they may submit, None if they may not.
        refusal: Why they may not, one sentence.
        local: Whether they may name directories of this machine.
    """

    key: str
    user: str | None = None
    refusal: str = ""
    local: bool = False


def hosting(environment: Mapping[str, str] = os.environ) -> Hosting:
    """Returns where the page runs, as the Hub says in the environment of a Space."""
    if not environment.get("SPACE_ID"):
        return Hosting()
    hosts = [host.strip().lower() for host in environment.get("SPACE_HOST", "").split(",")]
    # An empty secret would make cookies that anybody can sign.
    sign_in = all(environment.get(name) for name in _OAUTH_VARIABLES)
    return Hosting(space=True, sign_in=sign_in, hosts=frozenset(filter(None, hosts)))


def client_address(peer: Any, headers: Mapping[str, str], hosting: Hosting) -> str:
    """Returns the address of a client, or its network where one client has many addresses (IPv6, /64).

    `X-Forwarded-For` is read on a Space only, and there the last public address of it, which the Hub's proxy has
    written: a client can put anything before it.

    Args:
        peer: Address and port of the other end of the connection, None if there is none.
        headers: Of the request; names in lower case.
        hosting: Where the page runs.
    """
    forwarded = headers.get("x-forwarded-for", "") if hosting.space else ""
    for text in reversed(forwarded.split(",")):
        address = _parsed(text)
        if address is not None and address.is_global:
            return _network(address)
    host = peer[0] if peer else ""
    address = _parsed(host)
    return host if address is None else _network(address)


def visitor(
    peer: Any,
    headers: Mapping[str, str],
    username: str | None,
    settings: Settings,
    store: Store,
    hosting: Hosting,
) -> Visitor:
    """Returns who has sent a request.

    Args:
        peer: As in `client_address`.
        headers: Of the request; names in lower case.
        username: Whom the Hub has named, None if nobody has signed in.
        settings: Where the store is.
        store: The requests repository.
        hosting: Where the page runs.
    """
    address = f"address {client_address(peer, headers, hosting)}"
    if _is_from_another_site(headers, hosting):
        return Visitor(address, refusal=OTHER_SITE)
    if hosting.space:
        if hosting.sign_in and username:
            return Visitor(f"user {username.casefold()}", username)
        return Visitor(address, refusal=NOT_SIGNED_IN if hosting.sign_in else NO_SIGN_IN)
    if settings.on_hub:
        return Visitor(address, refusal=OWN_TOKEN)
    if not _is_this_machine(peer, headers):
        return Visitor(address, refusal=OTHER_MACHINE)
    return Visitor(address, store.user(), local=True)


def _is_from_another_site(headers: Mapping[str, str], hosting: Hosting) -> bool:
    """Whether a browser says that another site's page has sent this; Gradio would take it, cookies and all."""
    origin = headers.get("origin")
    if origin is None:
        return False
    return origin.lower().partition("://")[2] not in {headers.get("host", "").lower(), *hosting.hosts}


def _is_this_machine(peer: Any, headers: Mapping[str, str]) -> bool:
    """Whether a browser of this machine asks, and under a name of this machine that no other site can take."""
    if any(name in headers for name in _OF_PROXIES):
        return False
    address = _parsed(peer[0]) if peer else None
    name = re.sub(r":\d+$", "", headers.get("host", "").lower())
    return address is not None and address.is_loopback and name in _THIS_MACHINE


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.strip().partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _network(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))
