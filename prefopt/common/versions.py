"""Looks up the versions of installed packages."""

from importlib.metadata import PackageNotFoundError, version

from prefopt import __version__


def version_of(package: str) -> str | None:
    """The version of an installed distribution, or None; `prefopt` itself is distributed as `prefopt-zoo`."""
    if package == "prefopt":
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None
