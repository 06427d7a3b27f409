"""A manifest's matrix over environments: the same tasks with other software, a run each, for ``sweep compare``.

Which software a driver finds is settled before it starts, by the job that starts it: one environment is one run. Pure: installs nothing.
"""

from __future__ import annotations

import dataclasses

from orchestrator import catalogue
from orchestrator.errors import UsageError
from orchestrator.fields import Environment, Submit
from orchestrator.manifest import LoadedManifest, content_digest


def selected(loaded: LoadedManifest, name: str | None = None) -> tuple[LoadedManifest, ...]:
    """The manifest as it is run in each of its environments, or in the one called ``name``; itself if it has none.

    Raises:
        UsageError: there is no environment of that name.
    """
    there = loaded.manifest.environments
    if name is not None and name not in there:
        hint = f"{catalogue.suggest(name, there)}; there are: {', '.join(there)}" if there else ", which has no `environments`"
        raise UsageError(f"--environment {name}: not in {loaded.path}{hint}")
    if not there:
        return (loaded,)
    return tuple(_in(loaded, each, there[each]) for each in ([name] if name is not None else there))


def only(loaded: LoadedManifest, name: str | None) -> LoadedManifest:
    """The manifest as one driver runs it.

    Raises:
        UsageError: it has several environments and none is named, or one that is not there.
    """
    if loaded.manifest.environments and name is None:
        raise UsageError(
            f"{loaded.path} is for several environments, a run each: {', '.join(loaded.manifest.environments)}. `sweep submit` runs it in "
            "all of them; --environment NAME says which one this Python is"
        )
    return selected(loaded, name)[0]


def run_name(base: str, loaded: LoadedManifest) -> str:
    """``base``, and the environment if there is one."""
    return f"{base}-{loaded.environment}" if loaded.environment else base


def _in(loaded: LoadedManifest, name: str, environment: Environment) -> LoadedManifest:
    manifest = loaded.manifest.model_copy(update={"submit": _over(loaded.manifest.submit or Submit(), environment), "environments": {}})
    return dataclasses.replace(loaded, manifest=manifest, digest=content_digest(manifest), environment=name)


def _over(submit: Submit, environment: Environment) -> Submit:
    """``submit`` with the environment's software: its packages and its image in place of those, its variables beside them."""
    packages = {"pip": environment.pip, "uv": environment.uv} if environment.pip or environment.uv else {}
    image = {"image": environment.image} if environment.image else {}
    return submit.model_copy(update={**packages, **image, "env_vars": submit.env_vars | environment.env_vars})
