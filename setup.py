"""Installs the folder `conf/` as the package `prefopt.conf`, which pyproject.toml cannot express."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["prefopt", "prefopt.*"]), "prefopt.conf"],
    package_dir={"prefopt.conf": "conf"},
)
