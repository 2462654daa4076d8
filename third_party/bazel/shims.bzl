"""Repositories that Bazel 4 wants from the network although a Python workspace uses almost nothing of them."""

_PUBLIC = "visibility = [\"//visibility:public\"]"

def _shim_impl(repository_ctx):
    for path, content in repository_ctx.attr.files.items():
        repository_ctx.file(path, content)

_shim = repository_rule(
    implementation = _shim_impl,
    attrs = {"files": attr.string_dict(mandatory = True)},
)

def _forward(rules):
    return "".join(["{0} = native.{0}\n".format(rule) for rule in rules])

def bazel4_shims():
    """Defines rules_cc, rules_java and remote_coverage_tools for Bazel 4 (Debian's has an empty version)."""
    if native.bazel_version and not native.bazel_version.startswith("4."):
        return
    _shim(
        name = "rules_cc",
        files = {
            "BUILD": "",
            "cc/BUILD": "toolchain_type(name = \"toolchain_type\", %s)\n" % _PUBLIC,
            "cc/defs.bzl": _forward([
                "cc_binary",
                "cc_import",
                "cc_library",
                "cc_proto_library",
                "cc_test",
                "cc_toolchain",
                "cc_toolchain_suite",
                "objc_library",
            ]),
        },
    )
    _shim(
        name = "rules_java",
        files = {
            "BUILD": "",
            "java/BUILD": "",
            "java/defs.bzl": _forward([
                "java_binary",
                "java_import",
                "java_library",
                "java_proto_library",
                "java_runtime",
                "java_toolchain",
            ]),
        },
    )
    _shim(
        name = "remote_coverage_tools",
        files = {
            "BUILD": "".join([
                "filegroup(name = \"%s\", %s)\n" % (name, _PUBLIC)
                for name in ["coverage_output_generator", "coverage_report_generator", "lcov_merger"]
            ]),
        },
    )
