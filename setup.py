"""Build script: packages found through the committed links, recipes as package data."""

from setuptools import find_packages, setup

setup(
    name="fastrot",
    version="0.1.0",
    packages=find_packages(include=["fastrot", "fastrot.*"]),
    package_data={"fastrot": ["configs/*.yaml", "configs/**/*.yaml"]},
    python_requires=">=3.11",
)
