"""Settings of the leaderboard: the one place where its environment variables are read.

| variable | meaning |
|---|---|
| `PARCONTROL_LEADERBOARD` | directory of the local store; default `outputs/leaderboard` of the checkout one is in |
| `H4_TOKEN` | token of the Hub, needed to write there |
| `REPO_ID` | dataset repository of the leaderboard data |
| `QUEUE_REPO` | dataset repository of the requests |
| `RESULTS_REPO` | dataset repository of the results |
| `HF_ENDPOINT` | address of the Hub, where it is not the public one |
| `PARCONTROL_MIRROR` | offline mirror of the Hub: `models/<id>`, `datasets/<id>` |

The store is on the Hub if the three repositories are named, else in the local directory, which needs no account.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr

from parcontrol.mirror import MIRROR_VARIABLE, mirror_directory

ROOT_VARIABLE = "PARCONTROL_LEADERBOARD"
TOKEN_VARIABLE = "H4_TOKEN"
REPOSITORY_VARIABLES = {"repo_id": "REPO_ID", "queue_repo": "QUEUE_REPO", "results_repo": "RESULTS_REPO"}
ENDPOINT_VARIABLE = "HF_ENDPOINT"

# What only this project has at its root: commands work alike from there and from leaderboard/.
_MARK_OF_CHECKOUT = Path("src/parcontrol/leaderboard")
_DEFAULT_ROOT = Path("outputs/leaderboard")


class Settings(BaseModel):
    """Where the leaderboard keeps its data.

    Attributes:
        root: Directory of the local store.
        token: Token of the Hub. It is never printed and goes to no other process.
        repo_id: Dataset repository of the leaderboard data.
        queue_repo: Dataset repository of the requests.
        results_repo: Dataset repository of the results.
        endpoint: Address of the Hub; None is the public one.
        mirror: Offline mirror of the Hub.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    token: SecretStr | None = None
    repo_id: str | None = None
    queue_repo: str | None = None
    results_repo: str | None = None
    endpoint: str | None = None
    mirror: Path | None = None

    @property
    def on_hub(self) -> bool:
        """Whether the store is on the Hub."""
        return self.queue_repo is not None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Reads the settings; an empty variable counts as unset.

        Raises:
            ValueError: Some, but not all, of the three repositories are named; or the token cannot be one.
        """
        given = os.environ if environment is None else environment
        repositories = {field: given.get(name) or None for field, name in REPOSITORY_VARIABLES.items()}
        missing = [REPOSITORY_VARIABLES[field] for field, repository in repositories.items() if not repository]
        if 0 < len(missing) < len(repositories):
            raise ValueError(
                f"{' and '.join(missing)} not set: name all of {', '.join(REPOSITORY_VARIABLES.values())} for a store "
                f"on the Hub, or none for one in a local directory"
            )
        return cls(
            root=Path(given.get(ROOT_VARIABLE) or default_root()).expanduser().absolute(),
            token=_token(given.get(TOKEN_VARIABLE, "")),
            endpoint=(given.get(ENDPOINT_VARIABLE) or "").rstrip("/") or None,
            mirror=mirror_directory(given.get(MIRROR_VARIABLE)),
            **repositories,
        )


def _token(text: str) -> SecretStr | None:
    """The token without the white space around it, such as the newline of the file that it was read from."""
    token = text.strip()
    # What no HTTP header can hold would come back in the text of an error.
    if not all("!" <= character <= "~" for character in token):
        raise ValueError(f"{TOKEN_VARIABLE} is no token: it holds more than ASCII letters, digits and signs")
    return SecretStr(token) if token else None


def default_root() -> Path:
    """Returns `outputs/leaderboard` in the checkout that holds the working directory, or in the working directory."""
    here = Path.cwd()
    checkout = next((place for place in (here, *here.parents) if (place / _MARK_OF_CHECKOUT).is_dir()), here)
    return checkout / _DEFAULT_ROOT
