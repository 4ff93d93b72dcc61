"""The one thing that setup.cfg cannot say: configs/*.yaml are a package's data, beside the packages that are found."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["gan_t2i*"]), "gan_t2i.recipes"], package_dir={"gan_t2i.recipes": "configs"})
