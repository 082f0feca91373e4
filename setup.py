"""The one thing that pyproject.toml cannot say: `conf/` at the top is installed as the package `prefopt.conf`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["prefopt", "prefopt.*"]), "prefopt.conf"],
    package_dir={"prefopt.conf": "conf"},
)
