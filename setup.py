"""Builds `hal._native` through cffi; everything else is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["hal/native_build.py:FFIBUILDER"])
