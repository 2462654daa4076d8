"""Python rules as this repository uses them: native ones, with what every target would repeat."""

load("@python_deps//:requirements.bzl", "requirement")

_EVERYWHERE = ["//:__subpackages__"]

def package_sources():
    """Defines :sources, every file of the package; the checks and the bundle read it. Once a BUILD file."""
    native.filegroup(
        name = "sources",
        srcs = native.glob(["**"], exclude = ["**/__pycache__/**"]),
        visibility = _EVERYWHERE,
    )

def _package_init(srcs):
    """The package's own __init__.py comes with each of its modules."""
    return srcs + [init for init in native.glob(["__init__.py"]) if init not in srcs]

def py_library(name, srcs, **kwargs):
    """A module, or a few that are one thing."""
    native.py_library(name = name, srcs = _package_init(srcs), **kwargs)

def py_binary(name, srcs, **kwargs):
    """A program. Its first source is its main file unless `main` says otherwise."""
    main = kwargs.pop("main", srcs[0])
    native.py_binary(name = name, srcs = _package_init(srcs), main = main, python_version = "PY3", **kwargs)

def py_test(name, srcs, size, deps = [], **kwargs):
    """Tests for pytest; the first source holds them.

    Args:
      name: Name of the target.
      srcs: The test file, then its helpers.
      size: small (under 60 s), medium (under 5 minutes) or large (under 15).
      deps: What the sources import.
      **kwargs: As in native.py_test.
    """
    native.py_test(
        name = name,
        srcs = _package_init(srcs) + ["//tools/build:pytest_main.py"],
        main = "//tools/build:pytest_main.py",
        args = ["$(location %s)" % srcs[0]] + kwargs.pop("args", []),
        size = size,
        deps = depset(deps + [requirement("pytest")]).to_list(),
        python_version = "PY3",
        **kwargs
    )
